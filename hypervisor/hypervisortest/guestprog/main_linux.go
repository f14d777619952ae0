// Guestprog is the guest of the conformance suite: as the init of a tiny
// initrd in a real machine, or as an ordinary process of the test driver, it
// serves a few ports on which the suite checks what a stream must do.
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		fmt.Println("carrel-probe-ok")
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "beside" {
		if err := serveProcess(os.Args[2:], true); err != nil {
			fmt.Fprintln(os.Stderr, "guestprog:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && slices.Contains([]string{"serve", "wall", "sandbox"}, os.Args[1]) {
		if err := serveProcess(os.Args[2:], false); err != nil {
			fmt.Fprintln(os.Stderr, "guestprog:", err)
			os.Exit(1)
		}
		return
	}
	if err := serveMachine(); err != nil {
		fmt.Println("guestprog:", err)
	}
	reboot()
}

// serveMachine is PID 1 of a machine.
func serveMachine() error {
	for _, m := range []struct{ source, target, kind string }{
		{"dev", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"},
	} {
		os.MkdirAll(m.target, 0o755)
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if console, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		unix.Dup2(int(console.Fd()), 1)
		unix.Dup2(int(console.Fd()), 2)
	}
	words, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	cmdline := strings.Fields(string(words))
	for _, w := range cmdline {
		switch w {
		case "carrel.probe=1":
			fmt.Println("carrel-probe-ok")
			return nil
		case "guestprog.mute=1": // comes up and never says so
			time.Sleep(time.Hour)
		case "carrel.end=poweroff": // where a reboot starts the machine again
			ending = unix.LINUX_REBOOT_CMD_POWER_OFF
		}
	}
	g := guest{dial: func(port uint32) (net.Conn, error) { return vsock.Dial(vsock.Host, port, nil) }}
	for _, port := range guestport.All {
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
				go g.serve(port, c)
			}
		}()
	}
	boot, err := g.dial(guestport.Boot)
	if err != nil {
		return fmt.Errorf("dial the host: %w", err)
	}
	return g.obey(boot)
}

// guest serves streams.
type guest struct {
	dial func(port uint32) (net.Conn, error)
}

// obey says hello on the boot stream and carries out what is asked there, one
// word per line.
func (g *guest) obey(boot net.Conn) error {
	if _, err := fmt.Fprintf(boot, "hello\n"); err != nil {
		return err
	}
	lines := bufio.NewScanner(boot)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		var answer string
		switch word {
		case "poweroff":
			return nil
		case "panic":
			panicKernel()
		case "ignore": // every polite request from now on
			select {}
		case "flood":
			go flood()
		case "dial": // dial <port>: the host listens there and gets an echo
			var port uint32
			fmt.Sscan(rest, &port)
			c, err := g.dial(port)
			if err != nil {
				answer = " " + err.Error()
				break
			}
			go g.serve(guestport.Echo, c)
		case "devices": // how many drivers are bound to a virtio device
			bound, _ := filepath.Glob("/sys/bus/virtio/drivers/*/virtio*") // the pattern is sound
			answer = fmt.Sprint(" ", len(bound))
		case "write", "digest":
			answer = " " + disk(word, rest)
		case "clock":
			answer = fmt.Sprintf(" %d", time.Now().UnixNano())
		default:
			answer = " unknown"
		}
		if _, err := fmt.Fprintf(boot, "done%s\n", answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

// disk does "write <device> <offset> <bytes>", which writes bytes of Stream, or
// "digest <device> <offset> <bytes>"; it answers "ok", a digest or an error.
func disk(word, rest string) string {
	var name string
	var off, n int64
	if _, err := fmt.Sscan(rest, &name, &off, &n); err != nil {
		return err.Error()
	}
	flags := os.O_RDONLY
	if word == "write" {
		flags = os.O_WRONLY
	}
	f, err := os.OpenFile("/dev/"+name, flags, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if word == "digest" {
		h := sha256.New()
		if m, err := io.Copy(h, io.NewSectionReader(f, off, n)); err != nil || m != n {
			return fmt.Sprint(m, " bytes: ", err)
		}
		return fmt.Sprintf("%x", h.Sum(nil))
	}
	if _, err = f.Seek(off, 0); err == nil {
		_, err = io.CopyN(f, new(guestport.Stream), n)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// flood prints without an end.
func flood() {
	line := []byte(strings.Repeat("\x1b]0;flood\x07\x00\xff", 100) + "\n")
	for {
		os.Stdout.Write(line)
	}
}

// panicKernel ends the machine as a broken kernel would; in the test driver,
// the process.
func panicKernel() {
	if os.Getpid() != 1 {
		unix.Kill(os.Getpid(), unix.SIGSEGV)
	}
	os.Exit(1) // "Attempted to kill init!"
}

// ending is how the machine ends.
var ending = unix.LINUX_REBOOT_CMD_RESTART

func reboot() {
	unix.Sync()
	unix.Reboot(ending)
	select {}
}
