package share

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ServeDevice is ServeStream for an open /dev/fuse, which this kernel or a
// guest of this kernel has mounted: one read gives one message, and a reply is
// one write. The descriptor must not block. It closes f, which ends the mount's
// life if nobody else holds the device open: every file there is then ENOTCONN.
func (s *Server) ServeDevice(ctx context.Context, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return err
	}
	return s.carry(ctx, &device{f: f, rc: rc})
}

type device struct {
	f    *os.File
	rc   syscall.RawConn
	once sync.Once
}

func (d *device) close() { d.once.Do(func() { d.f.Close() }) }

func (d *device) next(in []byte) ([]byte, error) {
	if len(in) < MaxMessage {
		in = make([]byte, MaxMessage)
	}
	var n int
	for {
		var rerr error
		err := d.rc.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), in)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case err != nil: // closed here
			return nil, io.EOF
		case errors.Is(rerr, unix.EINTR), errors.Is(rerr, unix.ENOENT): // the second: given up before it was read
			continue
		case errors.Is(rerr, unix.ENODEV), errors.Is(rerr, unix.ECONNABORTED): // unmounted
			return nil, io.EOF
		case rerr != nil:
			return nil, rerr
		}
		return in[:n], nil
	}
}

func (d *device) reply(out []byte) error {
	var werr error
	err := d.rc.Control(func(fd uintptr) { _, werr = unix.Write(int(fd), out) })
	switch {
	case err != nil, errors.Is(werr, unix.ENODEV):
		return io.EOF
	case errors.Is(werr, unix.ENOENT): // the one who asked was given up on
		return nil
	}
	return werr
}
