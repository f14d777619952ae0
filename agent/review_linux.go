package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strings"

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
	if err := a.startReview(ctx, conn, s); err != nil {
		_ = s.done(err)
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
}

func (a *Agent) startReview(ctx context.Context, conn net.Conn, s *reviewer) error {
	select {
	case <-a.ready:
	default:
		return errNotReady
	}
	if a.o.shares == nil {
		return fmt.Errorf("this guest has no layer over %.200q: it is the test driver's, and changes the folder itself", s.path)
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
	s.list.notes = s.shares.m.notes()
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
			err = s.shares.drop(s.path, k.Drop.Names)
		default:
			return errors.New("this agent does not know what is asked of a review")
		}
		var lost *writeError
		if errors.As(err, &lost) || s.done(err) != nil {
			return nil
		}
	}
}

// done ends the list, or one answer.
func (s *reviewer) done(err error) error {
	d := &wire.Done{}
	if err != nil {
		d.Error = text(err.Error(), wire.MaxText)
	}
	if err := wire.Write(s.out, &wire.Reviewed{Kind: &wire.Reviewed_Done{Done: d}}); err != nil {
		return err
	}
	return s.out.Flush()
}

// content sends a regular file as it is now, and no more than it had when it
// was opened: it may grow as fast as it is read.
func (s *reviewer) content(index uint32) error {
	name, ok := s.list.regular(index)
	if !ok {
		return fmt.Errorf("entry %d of the list is no regular file", index)
	}
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

// drop forgets changes: the host's entries of these names are seen again, or
// nothing where the host has none. What is in a folder is forgotten by its own
// name, not by the folder's.
func (k *shares) drop(at string, names []string) error {
	upper, lower, err := k.layer(at)
	if err != nil {
		return err
	}
	defer unix.Close(upper)
	defer unix.Close(lower)
	names = slices.Clone(names)
	for _, name := range names {
		if name == "" || name == "." || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") || name[0] == '/' ||
			len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			return fmt.Errorf("%.200q is no name of a change", name)
		}
	}
	// What is in a folder comes before it.
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(b, a) })
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := k.find(at)
	if err != nil {
		return err
	}
	// What the host has counts as it is now.
	if err := n.refresh(); err != nil {
		return err
	}
	for _, name := range names {
		if err = forget(upper, lower, name, k.m.notes()); err != nil {
			err = fmt.Errorf("forget the change of %.200q: %w", name, err)
			break
		}
	}
	return errors.Join(err, n.refresh())
}

// forget removes one entry of an upper folder. Where the host has a folder of
// that name, the layer's stays, as one that hides and changes nothing: a task
// may be in it.
func forget(upper, lower int, name, notes string) error {
	dir, base := path.Split(name)
	parent, err := openBeneath(upper, path.Clean(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return unlessAbsent(err)
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return unlessAbsent(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unlessAbsent(unix.Unlinkat(parent, base, 0))
	}
	below, err := openBeneath(lower, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	switch {
	case err == nil:
		defer unix.Close(below)
		return merge(parent, base, below, notes)
	case absent(err):
		if err := unix.Unlinkat(parent, base, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return unlessAbsent(err)
		}
		return nil
	}
	return fmt.Errorf("look at what the host has: %w", err)
}

// merge makes a folder of the layer show the host's, with its mode.
func merge(parent int, base string, below int, notes string) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlessAbsent(err)
	}
	defer unix.Close(fd)
	// What the kernel remembers may be what an apply has changed just now.
	var st unix.Statx_t
	if err := unix.Statx(below, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MODE, &st); err != nil {
		return err
	}
	if err := unix.Fremovexattr(fd, notes+"opaque"); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return unix.Fchmod(fd, uint32(st.Mode)&0o1777)
}

// absent says that there is nothing of that name.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// unlessAbsent is the error of what need not be done any more.
func unlessAbsent(err error) error {
	if absent(err) {
		return nil
	}
	return err
}
