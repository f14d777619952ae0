//go:build unix

package agent

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// carryChunk is how many bytes are read at once.
	carryChunk = 64 << 10
	// lingering bounds how long, and how many bytes, a client that is still
	// sending is listened to after the host has closed the stream. If the
	// socket were closed over unread bytes, the client would get a reset and
	// might not read the host's last words, which say why (RFC 9112, 9.6).
	lingering      = 5 * time.Second
	lingeringBytes = 16 << 20
)

// chunks are the buffers of connections that have something to say right now.
var chunks = sync.Pool{New: func() any { return new([carryChunk]byte) }}

// stream is a connection with two ends that end on their own. The kernel says
// when it is readable, so that a silent one costs no buffer.
type stream interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// carry copies bytes both ways between a connection in the guest and a stream
// to the host until both have ended, and closes both. A stream that the host
// breaks off is a reset in the guest; with refusals also one that the host ends
// before it said anything and before the guest's end.
func carry(client *net.TCPConn, host net.Conn, refusals bool) {
	h, ok := host.(stream)
	if !ok {
		_ = host.Close()
		reset(client)
		return
	}
	var asked atomic.Bool // the client has ended its side
	var up sync.WaitGroup
	up.Go(func() {
		_, err := pour(h, client)
		if err == nil {
			asked.Store(true)
			// It may fail where the host has closed already, and then its
			// answer is still to be read.
			_ = h.CloseWrite()
		}
		var w *writeError
		switch {
		case errors.As(err, &w):
			// The host does not listen any more, but may have answered.
			linger(client)
		case err != nil:
			// The client is gone: nobody is there to answer.
			_ = h.Close()
		}
	})
	n, err := pour(client, h)
	if err != nil || refusals && n == 0 && !asked.Load() {
		_ = client.SetLinger(0)
		_ = client.Close()
		_ = h.Close()
	} else {
		_ = client.CloseWrite()
	}
	up.Wait()
	_ = h.Close()
	_ = client.Close()
}

// writeError is an error of pour's destination.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// pour copies until the end of from, and returns how much that was. It holds a
// buffer only while there are bytes in it.
func pour(to net.Conn, from stream) (total int64, err error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	for {
		b, n, err := readSome(raw)
		if n > 0 {
			_, werr := to.Write(b[:n])
			total += int64(n)
			if werr != nil {
				err = &writeError{werr}
			}
		}
		if b != nil {
			chunks.Put(b)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// readSome waits until there is something to read, and only then takes a
// buffer, which is the caller's if it is not nil.
func readSome(raw syscall.RawConn) (b *[carryChunk]byte, n int, err error) {
	e := raw.Read(func(fd uintptr) bool {
		b = chunks.Get().(*[carryChunk]byte)
		for {
			n, err = unix.Read(int(fd), b[:])
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			chunks.Put(b)
			b, n = nil, 0
			return false
		}
		return true
	})
	switch {
	case e != nil:
		return b, 0, e
	case err != nil:
		return b, 0, err
	case n == 0:
		return b, 0, io.EOF
	}
	return b, n, nil
}

// linger reads what the client still sends, within bounds.
func linger(client *net.TCPConn) {
	_ = client.SetReadDeadline(time.Now().Add(lingering))
	raw, err := client.SyscallConn()
	if err != nil {
		return
	}
	for left := lingeringBytes; left > 0; {
		b, n, err := readSome(raw)
		if b != nil {
			chunks.Put(b)
		}
		if err != nil {
			return
		}
		left -= n
	}
}

// reset closes c so that its client gets ECONNRESET.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
