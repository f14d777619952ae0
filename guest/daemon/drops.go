package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// fileDrops is the file in a guest's folder that holds what it is to forget when
// it runs again: what was applied or discarded while it did not. Else it would
// tell the same changes once more.
const fileDrops = "drops"

// Bounds of the file, and of one message in it, in bytes.
const (
	maxDrops = 256 << 20
	maxDrop  = 4 << 20
)

// dropReview has a guest forget changes: now, if it runs, else at its next start.
//
// What was applied or discarded by its name may have been changed again since it
// was read, and nobody has that. So an import has the guest forget it: it has
// the stamp of each change that was answered, and leaves what has another by
// now. Only who throws all away means all.
func (d *Daemon) dropReview(ctx context.Context, e *entry, paths []string) {
	info, k, _ := e.get()
	drops := dropped(info.Spec.GetShares(), paths)
	if k != nil && info.State == api.GuestState_GUEST_STATE_READY {
		dctx, cancel := context.WithTimeout(ctx, importTime)
		defer cancel()
		imported := false
		for len(drops) > 0 {
			if err := forgets(dctx, k, drops[0], &imported); err != nil {
				d.log.Warn("a guest keeps changes that are done with until its next start", "guest", e.name, "share", drops[0].Share, "error", err)
				break
			}
			drops = drops[1:]
		}
	}
	if err := noteDrops(d.dir(e), drops); err != nil {
		d.log.Error("note what a guest is to forget", "guest", e.name, "error", err)
	}
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

// noteDrops adds to the file. A crash in the middle leaves a piece at its end,
// which is passed over when it is read.
func noteDrops(dir string, drops []*api.DropReviewRequest) error {
	if len(drops) == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, fileDrops), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() > maxDrops {
		return fmt.Errorf("there is no room for more in %s: %w", f.Name(), errors.Join(err, errors.ErrUnsupported))
	}
	w := bufio.NewWriter(f)
	for _, m := range drops {
		if _, err := protodelim.MarshalTo(w, m); err != nil {
			return err
		}
	}
	return errors.Join(w.Flush(), f.Sync())
}

// forget is replayDrops for a start. It is done to its end, since nobody else does it
// before tasks change what it is about: without a caller, and for a moment also when
// this daemon ends.
func (d *Daemon) forget(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(d.ctx, func() { time.AfterFunc(guest.StopBound, cancel) })()
	err := d.replayDrops(ctx, e)
	if err != nil {
		d.log.Error("a guest does not forget", "guest", e.name, "error", err)
	}
	return err
}

// finishStart finishes a start that the daemon before this one began, as far as it is the
// daemon's: the guest is its keeper's already, and was not ready. It is as busy
// meanwhile as when it is started here.
func (d *Daemon) finishStart(e *entry) {
	e.busy = "started" // nobody else has it yet
	d.owned.Go(func() {
		defer e.release()
		info, err := e.wait(d.ctx, func(i *api.Guest, k *keeper) bool {
			return k == nil || i.State == api.GuestState_GUEST_STATE_READY
		})
		if err == nil && info.State == api.GuestState_GUEST_STATE_READY {
			d.forget(d.ctx, e)
		}
	})
}

// replayDrops has a guest that has just started forget what was noted. It is
// done before anybody can run a task in it.
func (d *Daemon) replayDrops(ctx context.Context, e *entry) error {
	path := filepath.Join(d.dir(e), fileDrops)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, k, _ := e.get()
	if k == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, importTime)
	defer cancel()
	info, _, _ := e.get()
	in, imported := bufio.NewReader(f), false
	for {
		m := new(api.DropReviewRequest)
		if (protodelim.UnmarshalOptions{MaxSize: maxDrop}).UnmarshalFrom(in, m) != nil {
			return os.Remove(path) // its end, or what a crash left of it
		}
		if !reviews(info.Spec, m.Share) {
			continue // the share is gone, or not in review any more
		}
		if err := forgets(ctx, k, m, &imported); err != nil {
			return fmt.Errorf("%s: %s", m.Share, ownText(err))
		}
	}
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
