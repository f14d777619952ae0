package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// importTimeout is how long a guest may take to say what it has changed in one
// share, contents and all.
const importTimeout = 60 * time.Second

// importer brings over what a guest has changed in its review shares. Those who
// ask while an import runs share the next one: it begins after they asked, so
// that it has what they want.
type importer struct {
	shares *shares

	mu   sync.Mutex
	run  chan struct{} // closed at the end of the import that runs, or nil
	next *importing    // what is waited for
}

type importing struct {
	task    string // of the first who asked
	ignored bool   // some of them want what the ignore rules leave out
	done    chan struct{}
	err     error
}

// all imports every review share of a running guest; ignored takes also the
// contents of what the host's ignore rules leave out.
func (m *importer) all(ctx context.Context, g *Guest, task string, ignored bool) error {
	m.mu.Lock()
	mine := m.next
	if mine == nil {
		mine = &importing{task: task, done: make(chan struct{})}
		m.next = mine
		before := m.run
		m.shares.streams.carried.Go(func() {
			if before != nil {
				<-before
			}
			m.mu.Lock()
			m.next, m.run = nil, mine.done
			m.mu.Unlock()
			mine.err = m.shares.importAll(g, mine.task, mine.ignored)
			close(mine.done)
		})
	}
	mine.ignored = mine.ignored || ignored
	m.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// importAll imports the review shares one after the other: they use the same
// agent and the same disk.
func (s *shares) importAll(g *Guest, task string, ignored bool) error {
	var errs []error
	for _, sh := range s.all() {
		if !reviewed(&sh) {
			continue
		}
		if err := s.importOne(g, &sh, task, ignored); err != nil {
			errs = append(errs, fmt.Errorf("read what was changed in %s: %w", sh.share.Path, err))
		}
	}
	return errors.Join(errs...)
}

func reviewed(sh *sharing) bool {
	return sh.server != nil && sh.share.Mode == api.ShareMode_SHARE_MODE_REVIEW && !sh.lost
}

// hasReviews says whether there is something to import at all.
func (s *shares) hasReviews() bool {
	for _, sh := range s.all() {
		if reviewed(&sh) {
			return true
		}
	}
	return false
}

func (s *shares) importOne(g *Guest, sh *sharing, task string, ignored bool) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), importTimeout, fmt.Errorf("the guest did not say it within %v", importTimeout))
	defer cancel()
	conn, err := g.call(ctx, &wire.Call{Kind: &wire.Call_Review{Review: &wire.Review{Path: sh.mount.GetPath()}}})
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	var answer error
	err = s.streams.hand(conn, func(theirs syscall.Conn) error {
		answer = sh.server.Review(ctx, task, ignored, theirs)
		return nil // it has the stream, whatever became of it
	})
	if err != nil {
		conn.Close()
		return err
	}
	conn.Close()
	return answer
}

// forget has the guest forget changes of a review share: those of names, or all.
func (s *shares) forget(ctx context.Context, g *Guest, path string, names []string) error {
	for _, sh := range s.all() {
		if sh.share.Path == path && reviewed(&sh) {
			return g.dropReview(ctx, sh.mount.GetPath(), names)
		}
	}
	return fmt.Errorf("the guest has no review of %s", path)
}

// dropBatch bounds the names of one frame, in bytes.
const dropBatch = 256 << 10

// dropReview goes past what the guest says of its changes, which is not looked
// at here, and sends the names.
func (g *Guest) dropReview(ctx context.Context, path string, names []string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, importTimeout, errors.New("the guest's agent does not answer"))
	defer cancel()
	conn, err := g.call(ctx, &wire.Call{Kind: &wire.Call_Review{Review: &wire.Review{Path: path}}})
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() {
			err = context.Cause(ctx)
		}
	}()
	r := wire.NewReader(conn)
	if err := reviewDone(r); err != nil {
		return err
	}
	for first := true; first || len(names) > 0; first = false {
		n, size := 0, 0
		for n < len(names) && size < dropBatch {
			size += len(names[n]) + 8
			n++
		}
		if err := sendReviewing(conn, &wire.Drop{Names: names[:n]}); err != nil {
			return err
		}
		if err := reviewDone(r); err != nil {
			return err
		}
		names = names[n:]
	}
	return nil
}

func sendReviewing(c net.Conn, d *wire.Drop) error {
	c.SetWriteDeadline(time.Now().Add(writeTimeout))
	return wire.Write(c, &wire.Reviewing{Kind: &wire.Reviewing_Drop{Drop: d}})
}

// maxReviewed bounds the frames of one answer: the list's and its end.
const maxReviewed = 1 << 20

// reviewDone reads up to the end of an answer.
func reviewDone(r *wire.Reader) error {
	for range maxReviewed {
		m := new(wire.Reviewed)
		if err := r.Read(m); err != nil {
			return fmt.Errorf("the guest's review ended early: %w", err)
		}
		if d := m.GetDone(); d != nil {
			if d.Error != "" {
				return errors.New(wire.Text(d.Error, wire.MaxText))
			}
			return nil
		}
	}
	return errors.New("the guest's review does not end")
}
