package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of a stream of FUSE messages.
const (
	// outHeader is struct fuse_out_header of include/uapi/linux/fuse.h: u32
	// length, i32 error, u64 unique.
	outHeader = 16
	// maxMessage is the longest message either way: 1 MiB of a file, and what
	// goes with it.
	maxMessage = 1<<20 + 8<<10
	// fuseWait bounds how long the host may take until a share is there.
	fuseWait = 10 * time.Second
	// fuseEnd bounds how long the host may take to close a stream after the
	// share was unmounted.
	fuseEnd = 5 * time.Second
)

const fuseDevice = "/dev/fuse"

// relay carries the messages of one share between the kernel and the host's
// share server. It understands nothing of them but their length:
//
//  1. one read of the device is one message, which goes to the host as it is
//  2. one message of the host is one write to the device
//
// When either side ends, so does the other. If the device stayed open without
// its server, whoever waits for an answer would wait for ever; closed, all get
// ENOTCONN.
//
// The agent itself must not hold up the kernel over a file of a share: it opens
// none with package os, whose poller would ask the share from a thread that Go
// cannot spare, and starts processes in "/" only.
type relay struct {
	dev  *os.File
	host net.Conn
	done chan struct{} // closed when nothing of it runs
}

// openFuse opens the device so that no thread waits for it.
func openFuse() (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("open %s: %w (the kernel needs its fuse module: modprobe fuse)", fuseDevice, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("open %s: %w (whoever starts guests must be allowed to: chmod 0666 %[1]s; or share the folder :plain, or use a VM)", fuseDevice, err)
	}
	return -1, fmt.Errorf("open %s: %w", fuseDevice, err)
}

// mountFuse mounts a share whose server the host runs. When it returns the
// share is there. The caller ends the relay.
func mountFuse(ctx context.Context, dial func(context.Context, uint32) (net.Conn, error), s *wire.Mount, at string, flags uintptr) (*relay, error) {
	if dial == nil {
		return nil, errors.New("there are no streams to the host, over which it would be served")
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fuseWait)
	defer cancel()
	fd, err := openFuse()
	if err != nil {
		return nil, err
	}
	host, err := dial(ctx, wire.PortShare)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if err := wire.Write(host, &wire.Attach{Tag: s.Tag}); err != nil {
		_, _ = unix.Close(fd), host.Close()
		return nil, fmt.Errorf("ask the host for share %s: %w", s.Tag, err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions", fd, os.Geteuid(), os.Getegid())
	if err := unix.Mount(s.Tag, at, "fuse", flags, options); err != nil {
		_, _ = unix.Close(fd), host.Close()
		if errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("mount share %s at %s: %w (the kernel has no FUSE)", s.Tag, at, err)
		}
		return nil, fmt.Errorf("mount share %s at %s: %w", s.Tag, at, err)
	}
	// Only now, since Go's poller takes a device that is not mounted yet for a
	// broken one.
	r := &relay{dev: os.NewFile(uintptr(fd), fuseDevice), host: host, done: make(chan struct{})}
	go r.run()
	// It is mounted before the server has said a word. A server that says
	// none is not waited for.
	late := context.AfterFunc(ctx, r.end)
	var st unix.Stat_t
	err = unix.Stat(at, &st)
	if !late() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		r.close()
		_ = unix.Unmount(at, unix.MNT_DETACH)
		return nil, fmt.Errorf("share %s is not served by the host: %w", s.Tag, err)
	}
	return r, nil
}

// run carries until either side ends.
func (r *relay) run() {
	defer close(r.done)
	var up sync.WaitGroup
	up.Go(r.up)
	r.down()
	r.end()
	up.Wait()
}

// end ends both sides, and does not wait. It may be called more than once.
func (r *relay) end() {
	_ = r.dev.Close()
	_ = r.host.Close()
}

// close ends the relay and returns when nothing of it runs any more.
func (r *relay) close() {
	r.end()
	<-r.done
}

// up carries what the kernel asks to the host.
func (r *relay) up() {
	b := make([]byte, maxMessage)
	for {
		n, err := r.dev.Read(b)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue // who asked has given up before it was read
		case errors.Is(err, unix.ENODEV):
			// Unmounted. The server closes its side when it has let go of
			// the folder.
			_ = r.host.SetReadDeadline(time.Now().Add(fuseEnd))
			if h, ok := r.host.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
				return
			}
			r.end()
			return
		case err != nil:
			r.end()
			return
		}
		if _, err := r.host.Write(b[:n]); err != nil {
			r.end()
			return
		}
	}
}

// down carries the host's answers to the kernel.
func (r *relay) down() {
	in := bufio.NewReaderSize(r.host, maxMessage)
	for {
		m, err := nextMessage(in)
		if err != nil {
			return
		}
		// Who asked may have been killed meanwhile: ENOENT. Anything else
		// means that somebody would wait for ever.
		if _, err := r.dev.Write(m); err != nil && !errors.Is(err, unix.ENOENT) {
			return
		}
		if _, err := in.Discard(len(m)); err != nil {
			return
		}
	}
}

// nextMessage returns the host's next answer, which stays in the reader's
// buffer. What is no answer (its unique number is 0: a notification) is left
// out: the kernel may have to wait, for a lock that who waits for the next
// answer holds. No server of ours sends any.
func nextMessage(in *bufio.Reader) ([]byte, error) {
	for {
		head, err := in.Peek(outHeader)
		if err != nil {
			return nil, err
		}
		n := binary.LittleEndian.Uint32(head)
		if n < outHeader || n > maxMessage {
			return nil, fmt.Errorf("a FUSE message of %d bytes, %d is the limit", n, maxMessage)
		}
		answer := binary.LittleEndian.Uint64(head[8:]) != 0
		m, err := in.Peek(int(n))
		if err != nil || answer {
			return m, err
		}
		if _, err := in.Discard(len(m)); err != nil {
			return nil, err
		}
	}
}
