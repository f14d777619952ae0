package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/review"
)

// fileChanging is in a guest's folder from before a review process changes what
// the guest shares until that has come to a good end. While it is there, names of
// ours may be left in the user's folders, and changes may be half told. The daemon
// reads no journal of theirs to find that out, since guests chose names in them.
const fileChanging = "changing"

// recoverTime bounds how long what was left of a change may take to finish or
// to take back, with the wait for a process that is about to stop.
const recoverTime = 2 * time.Minute

// runChange is runReview for a request that changes what the guest shares. One
// that did not end well, because the process was killed or could not go on, is
// finished or taken back at once. The caller has the turn of all readers.
func (d *Daemon) runChange(ctx context.Context, e *entry, req review.Request, m proto.Message, each func() error) error {
	if err := d.noteChanging(e); err != nil {
		return err
	}
	err := d.runReview(ctx, e, req, m, each)
	if err == nil {
		os.Remove(filepath.Join(d.dir(e), fileChanging))
		return nil
	}
	guest.Crash("change: before what is left of it is finished")
	d.recoverChange(context.WithoutCancel(ctx), e)
	return err
}

func (d *Daemon) noteChanging(e *entry) error {
	f, err := os.OpenFile(filepath.Join(d.dir(e), fileChanging), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	dir, derr := os.Open(d.dir(e))
	if derr != nil {
		return errors.Join(err, derr)
	}
	defer dir.Close()
	if runtime.GOOS == "windows" { // which flushes no folder; NTFS has a journal of names
		return err
	}
	return errors.Join(err, dir.Sync())
}

func (d *Daemon) changing(e *entry) bool {
	_, err := os.Lstat(filepath.Join(d.dir(e), fileChanging))
	return err == nil
}

// recoverChange has what was left of a change finished or taken back, share by
// share: one that is not there keeps no other waiting. What cannot be done now is
// done at the next start, or by the next apply or undo. The caller has the turn
// of all readers.
func (d *Daemon) recoverChange(ctx context.Context, e *entry) {
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	refs, err := d.reviewShares(e)
	for _, ref := range refs {
		err = errors.Join(err, d.runReviewOf(ctx, e, review.Request{Recover: &emptypb.Empty{}}, []review.ShareRef{ref}, new(emptypb.Empty), func() error { return nil }))
	}
	info, _, _ := e.get()
	if left := len(info.GetSpec().GetShares()) - len(refs); err == nil && left > 0 {
		err = errors.New("a share is not granted any more, or its folder is gone")
	}
	if err == nil {
		err = os.Remove(filepath.Join(d.dir(e), fileChanging))
	}
	if err != nil {
		d.log.Error("what was left of a change of a share is not finished (the next apply or undo tries again)", "guest", e.name, "error", err)
		return
	}
	d.log.Info("finished what was left of a change", "guest", e.name)
	d.record(e, "review.recovered", map[string]any{"shares": len(refs)})
}

// recoverLeft is recoverChange for a guest that this daemon has just taken over.
func (d *Daemon) recoverLeft(ctx context.Context, e *entry) {
	if !d.changing(e) || len(d.opts.Review) == 0 {
		return
	}
	if e.review.Acquire(ctx, readers) != nil {
		return // this daemon ends
	}
	defer e.review.Release(readers)
	if d.changing(e) {
		d.recoverChange(ctx, e)
	}
}
