package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

const (
	// maxReviews is how many reviews are served at once; more wait.
	maxReviews = 4
	// reviewChunk is how many bytes of a file one frame carries at most.
	reviewChunk = 256 << 10
)

// review serves one Review:
//
//  1. every entry of the layer, then Done
//  2. contents and forgetting, as the host asks, each until Done
func (a *Agent) review(ctx context.Context, conn net.Conn, r *wire.Review) {
	out := bufio.NewWriterSize(conn, wire.DataChunk)
	s := &reviewer{out: out, path: r.Path}
	if err := a.startReview(ctx, conn, s); err != nil && s.done(err) == nil {
		_ = out.Flush()
	}
}

// reviewer is one review.
type reviewer struct {
	out    *bufio.Writer
	path   string
	shares *shares
	// upper is the folder of changes, lower the share's under it; O_PATH.
	upper, lower int
	list         changes
	chunk        []byte
	// index finds an entry by its name; made for the first Drop. full are
	// folders that could not be removed yet.
	index map[uint64]int32
	full  []int32
}

func (a *Agent) startReview(ctx context.Context, conn net.Conn, s *reviewer) error {
	select {
	case <-a.ready:
	default:
		return errNotReady
	}
	if a.o.shares == nil {
		return fmt.Errorf("there is no layer over %.200q: this guest's tasks change the folder itself", s.path)
	}
	select {
	case a.o.shares.reviews <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.o.shares.reviews }()
	var err error
	s.shares = a.o.shares
	if s.upper, s.lower, err = s.shares.layer(s.path); err != nil {
		return err
	}
	defer unix.Close(s.upper)
	defer unix.Close(s.lower)
	s.list.notes, s.list.forgotten = s.shares.m.notes(), func(name string) int64 { return s.shares.whenForgotten(s.path, name) }
	s.list.send = func(c *wire.Changed) error {
		return wire.Write(s.out, &wire.Reviewed{Kind: &wire.Reviewed_Change{Change: c}})
	}
	if err := s.list.list(s.upper, s.lower); err != nil {
		return err
	}
	if err := s.done(nil); err != nil {
		return nil // nobody listens
	}
	in := wire.NewReader(conn)
	for {
		// The host asks for several contents at once: small ones leave together.
		if in.Buffered() == 0 && s.out.Flush() != nil {
			return nil
		}
		var m wire.Reviewing
		err := in.Read(&m)
		if errors.Is(err, io.EOF) || err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		switch k := m.Kind.(type) {
		case *wire.Reviewing_Want:
			err = s.content(k.Want.Index)
		case *wire.Reviewing_Drop:
			err = s.drop(k.Drop.Names)
		default:
			return errors.New("this agent does not know what is asked of a review")
		}
		var lost *writeError
		if errors.As(err, &lost) || s.done(err) != nil {
			return nil
		}
	}
}

// done ends the list, or one answer, which leave with the next flush.
func (s *reviewer) done(err error) error {
	d := &wire.Done{}
	if err != nil {
		d.Error = text(err.Error(), wire.MaxText)
	}
	return wire.Write(s.out, &wire.Reviewed{Kind: &wire.Reviewed_Done{Done: d}})
}

// content sends a regular file as it is now, and no more than it had when it
// was opened: it may grow as fast as it is read.
func (s *reviewer) content(index uint32) error {
	if uint64(index) >= uint64(len(s.list.entries)) || s.list.entries[index].kind != wire.ChangedType_CHANGED_TYPE_REGULAR {
		return fmt.Errorf("entry %d of the list is no regular file", index)
	}
	name := s.list.name(int32(index))
	// Nothing here waits for the other end of a pipe.
	fd, err := openBeneath(s.upper, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open the layer's %.200q: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%.200q is no regular file any more", name)
	}
	if s.chunk == nil {
		s.chunk = make([]byte, reviewChunk)
	}
	for left := st.Size; left > 0; {
		n, err := unix.Read(fd, s.chunk[:min(int64(len(s.chunk)), left)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the layer's %.200q: %w", name, err)
		}
		if n == 0 {
			return nil // it has become shorter
		}
		left -= int64(n)
		if err := wire.Write(s.out, &wire.Reviewed{Kind: &wire.Reviewed_Data{Data: s.chunk[:n]}}); err != nil {
			return &writeError{err}
		}
	}
	return nil
}

// layer opens the folder of a share's changes and what it is laid over; the
// caller closes both.
func (k *shares) layer(at string) (upper, lower int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := k.find(at)
	if err != nil {
		return -1, -1, err
	}
	if n.layer == "" {
		return -1, -1, fmt.Errorf("share %s has no layer: what the guest changes there is changed on the host", n.Tag)
	}
	upper, err = unix.Open(n.layer+"/upper", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open the layer of share %s: %w", n.Tag, err)
	}
	lower, err = unix.FcntlInt(uintptr(n.under), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(upper)
		return -1, -1, fmt.Errorf("open share %s under its layer: %w", n.Tag, err)
	}
	return upper, lower, nil
}
