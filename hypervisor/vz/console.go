package vz

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// consoleRate bounds what a guest's console may cost the host, in bytes per
	// second; a guest that prints faster waits.
	consoleRate = 1 << 20
	// panicLine is the longest line of a panic that is kept, in bytes.
	panicLine = 256
)

// panicMark is how Linux announces that it gives up. A guest's root may print it
// at will: it ends its own guest with that, which it can do anyway.
var panicMark = []byte("Kernel panic - not syncing")

// console is the guest's serial port.
type console struct {
	r        *os.File // our end of a pipe, never blocking
	sink     func([]byte)
	panicked func(line string) // called once, with the line escaped
	recent   []byte            // the last bytes, as long as no panic was seen
	seen     bool
	done     chan struct{} // closed when drain has returned
}

func newConsole(r *os.File, sink func([]byte), panicked func(string)) *console {
	return &console{r: r, sink: sink, panicked: panicked, done: make(chan struct{})}
}

// drain hands on what the guest prints until finish, or the other end's close.
func (c *console) drain() {
	defer close(c.done)
	buf := make([]byte, 4<<10)
	spent, period := 0, time.Now()
	for {
		n, err := c.r.Read(buf)
		c.take(buf[:n])
		if err != nil {
			return
		}
		if spent += n; spent >= consoleRate/10 {
			// A tenth of the rate is spent: no more before a tenth of a second is
			// over.
			if wait := 100*time.Millisecond - time.Since(period); wait > 0 {
				time.Sleep(wait)
			}
			spent, period = 0, time.Now()
		}
	}
}

// finish ends drain and takes what the pipe still holds, at most finishMax bytes.
// It waits for no end of it: the framework holds the other one as it likes.
func (c *console) finish() {
	c.r.SetReadDeadline(time.Now())
	<-c.done
	c.r.SetReadDeadline(time.Time{})
	const finishMax = 256 << 10 // more than a pipe holds
	if raw, err := c.r.SyscallConn(); err == nil {
		buf := make([]byte, 4<<10)
		for total := 0; total < finishMax; {
			n := 0
			err := raw.Read(func(fd uintptr) bool {
				n, _ = readFD(int(fd), buf)
				return true // what is not there now is not waited for
			})
			if err != nil || n <= 0 {
				break
			}
			c.take(buf[:n])
			total += n
		}
	}
	c.r.Close()
}

// take hands bytes on, and looks for a panic's whole line in them.
func (c *console) take(p []byte) {
	if len(p) == 0 {
		return
	}
	if c.sink != nil {
		c.sink(p)
	}
	if c.seen {
		return
	}
	c.recent = append(c.recent, p...)
	i := bytes.Index(c.recent, panicMark)
	if i < 0 {
		// The mark may be at the end in part.
		if keep := len(panicMark) - 1; len(c.recent) > keep {
			c.recent = append(c.recent[:0], c.recent[len(c.recent)-keep:]...)
		}
		return
	}
	line, _, whole := bytes.Cut(c.recent[i:], []byte("\n"))
	if !whole && len(line) < panicLine {
		c.recent = append([]byte(nil), line...)
		return
	}
	c.seen, c.recent = true, nil
	c.panicked(escape(line[:min(len(line), panicLine)]))
}

// escape makes one line that is safe to print out of a guest's bytes.
func escape(p []byte) string {
	s := strconv.QuoteToGraphic(strings.TrimRight(string(p), "\r\n"))
	return s[1 : len(s)-1]
}

// pipes are the descriptors of a serial port. The framework keeps the ones of its
// side without duplicating them (vz v3.7.1, virtualization_11.m), so they stay
// open here until the guest is gone.
type pipes struct {
	read, write *os.File // the framework's: what the guest reads and writes
	quiet       *os.File // nothing is ever written to it
	ours        *os.File // what the guest wrote
}

func newPipes() (*pipes, error) {
	var p pipes
	var err, err2 error
	p.read, p.quiet, err = os.Pipe()
	p.ours, p.write, err2 = os.Pipe()
	if err = errors.Join(err, err2); err != nil {
		p.close()
		p.closeOurs()
		return nil, err
	}
	return &p, nil
}

// close closes the framework's side.
func (p *pipes) close() { closeAll(p.read, p.write, p.quiet) }

func (p *pipes) closeOurs() { closeAll(p.ours) }

func closeAll(cs ...io.Closer) {
	for _, c := range cs {
		if f, ok := c.(*os.File); !ok || f != nil {
			c.Close()
		}
	}
}
