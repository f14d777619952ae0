package guest

import (
	"os"
	"strings"
	"sync"

	"github.com/carrel-vm/carrel/guest/wire"
)

// console keeps what a guest's kernel and agent print: two files of at most
// consoleMax bytes, the older one replaced when the newer is full.
type console struct {
	mu   sync.Mutex
	path string
	f    *os.File
	n    int64
	tail []byte
}

const (
	consoleMax  = 1 << 20
	consoleTail = 2 << 10
)

func openConsole(path string) (*console, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &console{path: path, f: f}, nil
}

// write never blocks on the guest and never fails: a console that cannot be
// kept is not worth a guest.
func (c *console) write(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.f == nil {
		return
	}
	if c.tail = append(c.tail, p...); len(c.tail) > consoleTail {
		c.tail = append(c.tail[:0], c.tail[len(c.tail)-consoleTail:]...)
	}
	if c.n += int64(len(p)); c.n > consoleMax {
		if f, err := os.OpenFile(c.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
			c.f.Close()
			os.Rename(c.path, c.path+".old")
			os.Rename(c.path+".new", c.path)
			c.f, c.n = f, int64(len(p))
		}
	}
	c.f.Write(p)
}

// last is the console's last few lines in one, escaped.
func (c *console) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(c.tail), "\r", "")), "\n")
	if len(lines) > 4 {
		lines = lines[len(lines)-4:]
	}
	return wire.Text(strings.Join(lines, " | "), wire.MaxText)
}

func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.f != nil {
		c.f.Close()
		c.f = nil
	}
}
