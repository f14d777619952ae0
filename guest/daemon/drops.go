package daemon

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// fileDrops is the file in a guest's folder that holds what it is to forget when
// it runs again: what was applied or discarded while it did not. Else it would
// tell the same changes once more.
//
//	applied, discarded ──> noted ── the guest is ready ──> told ──> removed ──> somebody's
//
// Who throws all away means all that there is until then, and nothing that comes
// later. So nobody has a guest before the file is gone, durably, and nothing is
// noted while somebody has it: a daemon that finds the file beside a guest that runs
// knows that nobody has had that guest since, and does as the one before it was
// about to. What could not be told is left to the guest's next import: the store
// has the stamp of each change that is done with.
const fileDrops = "drops"

// Bounds of the file, and of one message in it, in bytes.
const (
	maxDrops = 256 << 20
	maxDrop  = 4 << 20
)

// dropReview has a guest forget changes: now, if somebody has it, else at its next
// start.
//
// What was applied or discarded by its name may have been changed again since it
// was read, and nobody has that. So an import has the guest forget it: it has
// the stamp of each change that was answered, and leaves what has another by
// now. Only who throws all away means all: an err says that some of that stays.
//
// A guest that ends, or whose keeper does, forgets nothing any more, and is nobody's
// a moment later: then it is noted.
func (d *Daemon) dropReview(ctx context.Context, e *entry, paths []string) (err error) {
	info, _, _ := e.get()
	drops := dropped(info.Spec.GetShares(), paths)
	dctx, cancel := context.WithTimeout(ctx, importTime)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	note := func() error { return noteDrops(d.dir(e), drops) }
	k, err := e.noted(note)
	if k != nil {
		if drops, err = tellDrops(dctx, k, drops); err != nil && connect.CodeOf(d.handOn(e, err)) == connect.CodeFailedPrecondition {
			if _, werr := e.wait(dctx, func(_ *api.Guest, now *keeper) bool { return now != k }); werr == nil {
				if now, nerr := e.noted(note); now == nil {
					err = nerr
				}
			}
		}
	}
	if err == nil || errors.Is(err, os.ErrNotExist) { // its folder is gone, with all that it had
		return nil
	}
	d.log.Warn("a guest keeps changes that are done with until its next import", "guest", e.name, "error", err)
	if !slices.ContainsFunc(drops, func(m *api.DropReviewRequest) bool { return len(m.Names) == 0 }) {
		return nil // the import leaves them out
	}
	return err
}

// tellDrops has a guest that runs forget, and returns what it was not told.
func tellDrops(ctx context.Context, k *keeper, drops []*api.DropReviewRequest) ([]*api.DropReviewRequest, error) {
	imported := false
	for i, m := range drops {
		if err := forgets(ctx, k, m, &imported); err != nil {
			return drops[i:], err
		}
	}
	return nil, nil
}

// noted is the keeper of a guest that somebody has, or has note called for one that
// nobody has.
func (e *entry) noted(note func() error) (*keeper, error) {
	e.dropping.Lock()
	defer e.dropping.Unlock()
	if _, k, _ := e.get(); k != nil && k == e.had {
		return k, nil
	}
	return nil, note()
}

// forgets has a guest that runs forget what a message says. One import is enough
// for all that have names.
func forgets(ctx context.Context, k *keeper, m *api.DropReviewRequest, imported *bool) (err error) {
	switch {
	case len(m.Names) == 0:
		_, err = k.own.DropReview(ctx, connect.NewRequest(m))
	case !*imported:
		_, err = k.own.ImportReview(ctx, connect.NewRequest(&api.ImportReviewRequest{}))
		*imported = err == nil
	}
	return err
}

// noteDrops adds to the file, behind what is whole in it: a crash in the middle, or a
// full disk, leaves a piece at its end, with which reading it ends.
func noteDrops(dir string, drops []*api.DropReviewRequest) error {
	if len(drops) == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, fileDrops), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() > maxDrops {
		return fmt.Errorf("there is no room for more in %s: %w", f.Name(), errors.Join(err, errors.ErrUnsupported))
	}
	end, err := wholeDrops(f)
	if err != nil {
		return err
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	w := bufio.NewWriter(io.NewOffsetWriter(f, end))
	for _, m := range drops {
		if _, err = protodelim.MarshalTo(w, m); err != nil {
			break
		}
	}
	if err := errors.Join(err, w.Flush(), f.Sync()); err != nil {
		return errors.Join(err, f.Truncate(end)) // all of it is noted, or nothing
	}
	return nil
}

// wholeDrops is how many bytes at the file's beginning are whole messages.
func wholeDrops(f io.Reader) (end int64, err error) {
	for in := bufio.NewReader(f); ; {
		size, err := binary.ReadUvarint(in)
		if err == nil && size > maxDrop {
			return end, nil
		}
		if err == nil {
			_, err = in.Discard(int(size))
		}
		if failed := (*os.PathError)(nil); errors.As(err, &failed) {
			return 0, err
		}
		if err != nil { // its end, or that of what is whole in it
			return end, nil
		}
		end += int64(protowire.SizeVarint(size)) + int64(size)
	}
}

// forget has a guest that has just started forget what was noted, and hands it over:
// from then on it is somebody's. It is done to its end, since nobody else does it
// before tasks change what it is about: without a caller, and for a moment also when
// this daemon ends. said is what the guest does not forget, or nil; with an err it is
// nobody's, and is not to be.
func (d *Daemon) forget(ctx context.Context, e *entry) (said, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(d.ctx, func() { time.AfterFunc(guest.StopBound, cancel) })()
	e.dropping.Lock()
	defer e.dropping.Unlock()
	_, k, _ := e.get()
	if k == nil {
		return nil, nil // it has ended
	}
	guest.Crash("forget: before the guest is told")
	if said = d.replayDrops(ctx, e, k); said != nil {
		d.log.Error("a guest does not forget", "guest", e.name, "error", said)
		if ctx.Err() != nil && d.ctx.Err() != nil {
			return said, queueError("start guest "+e.name, errClosing, "") // the next daemon does it
		}
	}
	guest.Crash("forget: told, before that is written down")
	if err := noDrops(d.dir(e)); err != nil {
		d.log.Error("a guest is given to nobody, since it would forget what is done in it", "guest", e.name, "error", err)
		return said, api.NewError(connect.CodeInternal, "disk", "guest "+e.name+" has forgotten what was applied or discarded, and that cannot be written down: "+err.Error(), "see to the disk that holds "+d.guests)
	}
	guest.Crash("forget: written down")
	e.had = k
	return said, nil
}

// handsOver is forget for a start: a guest that cannot be handed over ends, unless
// this daemon does.
func (d *Daemon) handsOver(ctx context.Context, e *entry) (said, err error) {
	said, err = d.forget(ctx, e)
	if err == nil || d.ctx.Err() != nil {
		return said, err
	}
	e.setCause(ownText(err))
	d.end(context.WithoutCancel(ctx), e, 0)
	e.wait(d.ctx, func(_ *api.Guest, k *keeper) bool { return k == nil })
	return said, err
}

// adopts takes over a guest that a keeper has: it is somebody's, unless it starts
// still, or the daemon before this one did not come to hand it over.
func (d *Daemon) adopts(e *entry, starting bool) {
	if _, err := os.Lstat(filepath.Join(d.dir(e), fileDrops)); errors.Is(err, os.ErrNotExist) && !starting {
		e.had = e.keeper // nobody else has the entry yet
		return
	}
	d.finishStart(e)
}

// finishStart finishes a start that the daemon before this one began, as far as it is the
// daemon's: the guest is its keeper's already, and is nobody's yet. It is as busy
// meanwhile as when it is started here, but nobody asked for that: see finished.
func (d *Daemon) finishStart(e *entry) {
	e.busy, e.resumed = "started", true // nobody else has it yet
	d.owned.Go(func() {
		defer e.release()
		info, err := e.wait(d.ctx, func(i *api.Guest, k *keeper) bool {
			return k == nil || i.State == api.GuestState_GUEST_STATE_READY
		})
		if err == nil && info.State == api.GuestState_GUEST_STATE_READY {
			d.handsOver(d.ctx, e)
		}
	})
}

// replayDrops has a guest forget what was noted.
func (d *Daemon) replayDrops(ctx context.Context, e *entry, k *keeper) error {
	f, err := os.Open(filepath.Join(d.dir(e), fileDrops))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, importTime)
	defer cancel()
	info, _, _ := e.get()
	in, imported := bufio.NewReader(f), false
	for {
		m := new(api.DropReviewRequest)
		if (protodelim.UnmarshalOptions{MaxSize: maxDrop}).UnmarshalFrom(in, m) != nil {
			return nil // its end, or what a crash left of it
		}
		if !reviews(info.Spec, m.Share) {
			continue // the share is gone, or not in review any more
		}
		if err := forgets(ctx, k, m, &imported); err != nil {
			return fmt.Errorf("%s: %s", m.Share, ownText(err))
		}
	}
}

// noDrops empties the file, durably, and removes it: it would take what is done from
// now on. An empty one that a power cut brings back takes nothing.
func noDrops(dir string) error {
	path := filepath.Join(dir, fileDrops)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Remove(path)
}

// reviews says whether a guest has the folder in review.
func reviews(spec *api.GuestSpec, path string) bool {
	for _, sh := range spec.GetShares() {
		if sh.Path == path && sh.Mode == api.ShareMode_SHARE_MODE_REVIEW {
			return true
		}
	}
	return false
}
