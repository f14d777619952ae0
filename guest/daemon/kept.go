package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

const (
	// expiry is how long an ephemeral guest that ended without its caller is kept.
	expiry = 60 * time.Second
	// undoTime is how long what undo needs is kept of an ephemeral guest.
	undoTime = 24 * time.Hour
	// maxForUndo bounds the guests of which only that is left: the oldest go.
	maxForUndo = 32
)

// kept says why an ephemeral guest is still there. The zero value is any other
// guest's.
//
//	ephemeral ── its end ──> removed
//	     ├── changes wait ──────────> review ── all applied or discarded ──> removed
//	     └── what it did can be undone ─┬─> undo ── a day, or undone ──> removed
//	                review, all applied ┘
type kept struct {
	Why api.GuestKept
	// Since is when it was kept for that.
	Since time.Time
}

const fileKept = "kept.json"

type keptFile struct {
	Version int       `json:"version"`
	Why     string    `json:"why"`
	Since   time.Time `json:"since"`
}

func loadKept(dir string) (kept, error) {
	path := filepath.Join(dir, fileKept)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return kept{}, nil
	}
	var f keptFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	why := map[string]api.GuestKept{"review": api.GuestKept_GUEST_KEPT_REVIEW, "undo": api.GuestKept_GUEST_KEPT_UNDO}[f.Why]
	if err == nil && (f.Version != 1 || why == 0) {
		err = fmt.Errorf("it is of format %d and says %.20q", f.Version, f.Why)
	}
	if err != nil {
		return kept{}, fmt.Errorf("read why the guest is kept: %s: %w", path, err)
	}
	return kept{why, f.Since}, nil
}

// keep marks an ephemeral guest as kept: first on the disk, so that a crash
// loses neither the mark nor the changes.
func (d *Daemon) keep(e *entry, why api.GuestKept) error {
	word := "review"
	if why == api.GuestKept_GUEST_KEPT_UNDO {
		word = "undo"
	}
	now := time.Now().UTC()
	b, err := json.Marshal(keptFile{1, word, now})
	if err != nil {
		return err
	}
	if err := policy.WriteFile(filepath.Join(d.dir(e), fileKept), b); err != nil {
		return err
	}
	guest.Crash("keep: before the request")
	if err := d.respec(e, func(s *api.GuestSpec) { s.Ephemeral = false }); err != nil {
		return err
	}
	e.mu.Lock()
	e.kept = kept{why, now}
	e.changedLocked()
	e.mu.Unlock()
	d.log.Info("kept", "guest", e.name, "for", word)
	return nil
}

// unkeep makes a kept guest its user's own: it was started again.
func (d *Daemon) unkeep(e *entry) error {
	e.mu.Lock()
	e.kept = kept{}
	e.mu.Unlock()
	err := os.Remove(filepath.Join(d.dir(e), fileKept))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// respec changes what a guest is made of, on the disk and in the table.
func (d *Daemon) respec(e *entry, change func(*api.GuestSpec)) error {
	info, _, _ := e.get()
	change(info.Spec)
	if err := guest.Respec(d.dir(e), info.Spec); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.info = proto.Clone(e.info).(*api.Guest)
	e.info.Spec = info.Spec
	e.changedLocked()
	return nil
}

// leave settles what becomes of a guest that has ended: what waits of it is
// counted, and an ephemeral one is kept for its review or removed: at once when
// its caller has the result, else after a while in which the caller may come
// back for it.
func (d *Daemon) leave(ctx context.Context, e *entry, delivered bool) {
	info, k, _ := e.get()
	if k != nil || info.State != api.GuestState_GUEST_STATE_STOPPED {
		return
	}
	delivered = delivered || d.isWarm(e) // it was nobody's
	removing := false
	defer func() {
		if !removing {
			e.settled()
		}
	}()
	e.looked(ctx) // it is not removed under whoever counts
	measured := e.measure("what waits counted")
	sum, err := d.waiting(ctx, e)
	measured()
	if ctx.Err() != nil {
		return
	}
	if info.Spec.GetEphemeral() || info.Kept != api.GuestKept_GUEST_KEPT_UNSPECIFIED {
		if err == nil {
			delivered, err = d.keepOrNot(e, sum, delivered)
		}
		if err != nil { // it is not known what would be lost
			d.log.Error("an ended guest stays, since its changes cannot be looked at", "guest", e.name, "error", err)
			return
		}
		removing = d.removeLater(ctx, e, delivered) && delivered
	}
}

// waiting is what waits of a guest without a keeper; nil if nothing can.
func (d *Daemon) waiting(ctx context.Context, e *entry) (*api.ReviewSummary, error) {
	info, _, _ := e.get()
	if len(d.opts.Review) == 0 || len(info.GetSpec().GetShares()) == 0 {
		return nil, nil
	}
	return d.summarize(ctx, e)
}

// nothingWaits refuses to throw changes away that nobody has answered.
func (d *Daemon) nothingWaits(ctx context.Context, e *entry) error {
	info, _, _ := e.get()
	if info.State == api.GuestState_GUEST_STATE_DAMAGED || !inReview(info.Spec) {
		return nil
	}
	sum, err := d.waiting(ctx, e)
	if err != nil {
		return err
	}
	if n := pending(sum); n > 0 || sum.GetIncomplete() != "" {
		return api.NewError(connect.CodeFailedPrecondition, "changes_waiting", fmt.Sprintf("guest %s has %s that nobody has applied or discarded", e.name, files(n)),
			"carrel diff "+e.name+" shows them; carrel rm --force "+e.name+" throws them away")
	}
	return nil
}

// files counts files in words.
func files(n int32) string {
	if n == 1 {
		return "1 changed file"
	}
	return fmt.Sprintf("%d changed files", n)
}

// pending is how many changes wait for a yes or a no.
func pending(s *api.ReviewSummary) int32 { return s.GetAdded() + s.GetChanged() + s.GetRemoved() }

// keepOrNot marks the guest for what there is of it. soon says that nothing
// speaks for keeping it.
func (d *Daemon) keepOrNot(e *entry, sum *api.ReviewSummary, delivered bool) (soon bool, err error) {
	info, _, _ := e.get()
	already := func(why api.GuestKept) bool {
		// A daemon that died between keep's two writes left it ephemeral.
		return info.Kept == why && !info.Spec.GetEphemeral()
	}
	switch {
	case pending(sum) > 0 || sum.GetIncomplete() != "":
		if !already(api.GuestKept_GUEST_KEPT_REVIEW) {
			return false, d.keep(e, api.GuestKept_GUEST_KEPT_REVIEW)
		}
		return false, nil
	case sum.GetUndoable() > 0:
		if already(api.GuestKept_GUEST_KEPT_UNDO) {
			return false, nil
		}
		if err := d.keep(e, api.GuestKept_GUEST_KEPT_UNDO); err != nil {
			return false, err
		}
		if err := guest.RemoveDisk(d.dir(e)); err != nil {
			d.log.Error("remove a disk", "guest", e.name, "error", err)
		}
		d.boundForUndo()
		return false, nil
	}
	return delivered || info.Kept != api.GuestKept_GUEST_KEPT_UNSPECIFIED, nil
}

// removeLater removes the guest when its time has come, if it has one.
func (d *Daemon) removeLater(ctx context.Context, e *entry, soon bool) (will bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.busy != "" && e.keeper == nil { // when that is done
		e.left = func() {
			d.mu.Lock()
			there := d.table[e.name] == e
			d.mu.Unlock()
			if there && ctx.Err() == nil {
				d.leave(ctx, e, soon)
			}
		}
	}
	if e.busy != "" || e.keeper != nil {
		return false
	}
	after := expiry
	switch {
	case e.kept.Why == api.GuestKept_GUEST_KEPT_REVIEW && !soon:
		return false
	case soon:
		after = 0
	case e.kept.Why == api.GuestKept_GUEST_KEPT_UNDO:
		after = max(0, undoTime-time.Since(e.kept.Since))
	}
	if e.expire != nil {
		e.expire.Stop()
	}
	e.expire = time.AfterFunc(after, func() {
		if e.take("removed") == nil {
			defer e.release()
			if ctx.Err() == nil {
				d.discard(e)
			}
		}
		e.settled() // also if it is not gone: its next end tells anew
	})
	return true
}

// boundForUndo removes the oldest guests of which only undo is left.
func (d *Daemon) boundForUndo() {
	var all []*entry
	since := map[*entry]time.Time{}
	for _, e := range d.entries() {
		e.mu.Lock()
		k := e.kept
		e.mu.Unlock()
		if k.Why == api.GuestKept_GUEST_KEPT_UNDO {
			all, since[e] = append(all, e), k.Since
		}
	}
	slices.SortFunc(all, func(a, b *entry) int { return since[b].Compare(since[a]) })
	for _, e := range all[min(len(all), maxForUndo):] {
		if !e.review.TryAcquire(readers) {
			continue // somebody looks at it: the next time
		}
		if e.take("removed") == nil {
			d.discardMine(e)
			e.release()
		}
		e.review.Release(readers)
	}
}

// lookSoon counts what waits of a guest again, in the background: a task has
// ended, and what it changed has come over before that was said.
func (d *Daemon) lookSoon(e *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(d.opts.Review) == 0 || !inReview(e.info.GetSpec()) {
		return
	}
	if e.looking {
		e.again = true
		return
	}
	e.looking = true
	d.owned.Go(func() {
		for more := true; more; {
			if _, err := d.summarize(d.ctx, e); err != nil && d.ctx.Err() == nil {
				d.log.Warn("count what waits", "guest", e.name, "error", err)
			}
			e.mu.Lock()
			more = e.again && d.ctx.Err() == nil
			e.again = false
			if e.looking = more; !more {
				e.changedLocked()
			}
			e.mu.Unlock()
		}
	})
}

// looked waits until nothing is counted in the background any more.
func (e *entry) looked(ctx context.Context) {
	for {
		e.mu.Lock()
		looking, changed := e.looking, e.changed
		e.mu.Unlock()
		if !looking {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
