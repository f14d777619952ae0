package guest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A guest may hold a thousand connections that say nothing, so that a direction
// that waits holds no more than idleBytes; one that is busy borrows copyBytes,
// and gives them back after busyFor without a byte.
const (
	idleBytes = 1 << 10
	copyBytes = 32 << 10
	busyFor   = 2 * time.Second
)

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBytes); return &b }}

// join copies both ways between two connections, each direction ending by
// itself, and closes both when both have ended or one has failed.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	half := func(dst, src net.Conn) {
		if err := copyHalf(dst, src); err != nil {
			a.Close()
			b.Close()
			return
		}
		if c, ok := dst.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
	}
	both.Go(func() { half(a, b) })
	half(b, a)
	both.Wait()
	a.Close()
	b.Close()
}

// copyPatient copies from a connection that can only be asked for bytes by
// lending it room for them.
func copyPatient(dst io.Writer, src net.Conn) error {
	var idle [idleBytes]byte
	for {
		n, err := src.Read(idle[:])
		if n > 0 {
			if _, werr := dst.Write(idle[:n]); werr != nil {
				return werr
			}
		}
		if n == len(idle) && err == nil {
			err = copyBusy(dst, src)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
}

// copyBusy copies with a borrowed buffer until nothing came for a while; that
// is os.ErrDeadlineExceeded.
func copyBusy(dst io.Writer, src net.Conn) error {
	b := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(b)
	defer src.SetReadDeadline(time.Time{})
	for {
		src.SetReadDeadline(time.Now().Add(busyFor))
		n, err := src.Read(*b)
		if n > 0 {
			if _, werr := dst.Write((*b)[:n]); werr != nil {
				return werr
			}
		}
		if err != nil {
			return err
		}
	}
}
