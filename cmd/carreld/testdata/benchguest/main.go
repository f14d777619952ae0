// Benchguest is the init of the machine in which make bench measures carriers
// and shares: it does what one line on its vsock asks, and the host takes the
// time. It makes the system calls itself, so that what differs between two
// measurements is the host's side alone.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// Ports, known to cmd/carreld/bench_machine_linux_test.go too.
const (
	portHello   = 64
	portCommand = 100
	portEcho    = 101
	portStream  = 102
)

func main() {
	if err := serve(); err != nil {
		fmt.Println("benchguest:", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func serve() error {
	for _, m := range []struct{ target, kind string }{{"/dev", "devtmpfs"}, {"/proc", "proc"}, {"/sys", "sysfs"}, {"/mnt", "tmpfs"}} {
		os.MkdirAll(m.target, 0o755)
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := enter(); err != nil {
		return fmt.Errorf("the image: %w", err)
	}
	for port, handle := range map[uint32]func(io.ReadWriter) error{portCommand: command, portEcho: echo, portStream: stream} {
		ln, err := vsock.Listen(port, nil)
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					handle(c)
				}()
			}
		}()
	}
	go func() {
		if err := serial(); err != nil {
			fmt.Println("benchguest: serial:", err)
		}
	}()
	var c net.Conn
	c, err := vsock.Dial(vsock.Host, portHello, nil)
	if err != nil {
		return fmt.Errorf("dial the host: %w", err)
	}
	fmt.Fprintln(c, "hello")
	io.Copy(io.Discard, c) // until the host hangs up
	return nil
}

func echo(c io.ReadWriter) error {
	_, err := io.Copy(c, c)
	return err
}

// stream obeys 9 bytes, again and again: 'w' and a length has the guest write
// that many bytes, 'r' read that many and then answer with one byte.
func stream(c io.ReadWriter) error {
	block := make([]byte, 64<<10)
	for {
		var head [9]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		left := int64(binary.BigEndian.Uint64(head[1:]))
		for left > 0 {
			b := block[:min(left, int64(len(block)))]
			var n int
			var err error
			if head[0] == 'w' {
				n, err = c.Write(b)
			} else {
				n, err = c.Read(b)
			}
			if left -= int64(n); err != nil {
				return err
			}
		}
		if head[0] == 'r' {
			if _, err := c.Write([]byte{1}); err != nil {
				return err
			}
		}
	}
}

// serialPort makes blocking calls on the port: nothing between it and the kernel.
type serialPort int

func (p serialPort) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(p), b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0: // the host has not opened its side yet
			time.Sleep(10 * time.Millisecond)
		default:
			return n, nil
		}
	}
}

func (p serialPort) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) { // the driver takes 32 KiB at a time
		n, err := unix.Write(int(p), b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// serial serves the port of the one virtio-serial device; its name has the
// device's number among all.
func serial() error {
	var found []string
	for try := 0; len(found) == 0; try++ { // the host announces it in a message
		if try == 1000 {
			return fmt.Errorf("there is no port")
		}
		time.Sleep(10 * time.Millisecond)
		found, _ = filepath.Glob("/dev/vport*p1") // the pattern is sound
	}
	fd, err := unix.Open(found[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", found[0], err)
	}
	return stream(serialPort(fd))
}

// command reads lines of a word and its arguments, and answers each with "ok"
// and a number, or with an error.
func command(c io.ReadWriter) error {
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		var word, dir string
		var n int
		fmt.Sscan(lines.Text(), &word, &dir, &n)
		got, err := do(word, dir, n)
		answer := fmt.Sprintf("ok %d\n", got)
		if err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", " ") + "\n"
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func do(word, dir string, n int) (int, error) {
	switch word {
	case "mount": // dir says what, and how: see mountAs
		return 0, mountAs(dir)
	case "umount": // and forget everything
		unix.Sync()
		if err := unmounts[dir](); err != nil {
			return 0, err
		}
		return 0, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	case "clear":
		return 0, errors.Join(os.RemoveAll(filepath.Join("/mnt", dir, "new")), os.RemoveAll(filepath.Join("/mnt", dir, "bulk")))
	case "packages":
		return n, createPackages(filepath.Join("/mnt", dir, "new"), n)
	case "git":
		return n, gitStatus(dir)
	case "write":
		return n, writeFile(filepath.Join("/mnt", dir, "bulk"), n)
	case "read":
		return readFile(filepath.Join("/mnt", dir, "bulk"))
	case "create":
		return n, createFiles(filepath.Join("/mnt", dir, "new"), n)
	case "stat":
		return statTree(filepath.Join("/mnt", dir, "tree"))
	}
	return 0, fmt.Errorf("%q is no command", word)
}
