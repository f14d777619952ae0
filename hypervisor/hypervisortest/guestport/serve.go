package guestport

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Guest is what serves the ports, whatever it runs in: a machine, a process, or a
// process that stands in for a machine.
type Guest struct {
	// Dial opens a stream to a port of the host.
	Dial func(port uint32) (net.Conn, error)
	// Panic ends the guest as a broken kernel would.
	Panic func()
	// Disk is the path of a disk by its name in Linux, "vda", for reading or writing.
	Disk func(name string, write bool) (string, error)
	// Devices counts the virtio devices that have a driver.
	Devices func() int
	// Console gets what the guest prints.
	Console io.Writer
}

// Obey says hello on the boot stream and carries out what is asked there, one
// word per line.
func (g *Guest) Obey(boot net.Conn) error {
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
			g.Panic()
		case "ignore": // every polite request from now on
			select {}
		case "flood":
			go g.flood()
		case "dial": // dial <port>: the host listens there and gets an echo
			var port uint32
			fmt.Sscan(rest, &port)
			c, err := g.Dial(port)
			if err != nil {
				answer = " " + err.Error()
				break
			}
			go g.Serve(Echo, c)
		case "devices":
			answer = fmt.Sprint(" ", g.Devices())
		case "write", "digest":
			answer = " " + g.disk(word, rest)
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
func (g *Guest) disk(word, rest string) string {
	var name string
	var off, n int64
	if _, err := fmt.Sscan(rest, &name, &off, &n); err != nil {
		return err.Error()
	}
	flags := os.O_RDONLY
	if word == "write" {
		flags = os.O_WRONLY
	}
	path, err := g.Disk(name, word == "write")
	if err != nil {
		return err.Error()
	}
	f, err := os.OpenFile(path, flags, 0)
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
		_, err = io.CopyN(f, new(Stream), n)
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
func (g *Guest) flood() {
	line := []byte(strings.Repeat("\x1b]0;flood\x07\x00\xff", 100) + "\n")
	for {
		g.Console.Write(line)
	}
}

// Serve does what the port promises.
func (g *Guest) Serve(port uint32, c net.Conn) {
	defer c.Close()
	switch port {
	case Echo:
		io.Copy(c, c)
		closeWrite(c)
	case Sink:
		h := sha256.New()
		if _, err := io.Copy(h, c); err == nil {
			c.Write(h.Sum(nil))
		}
	case Source:
		var n [8]byte
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return
		}
		io.CopyN(c, new(Stream), int64(binary.BigEndian.Uint64(n[:])))
		closeWrite(c)
		io.Copy(io.Discard, c) // until the host has it all
	case Stall:
		select {}
	case HangUp:
	}
}

func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}
