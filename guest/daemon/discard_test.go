//go:build unix

package daemon

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// An ended guest's late removal never takes along a new guest of its name, nor
// one whose keeper runs. The control is the entry that the table has.
func TestDiscardKnowsItsGuest(t *testing.T) {
	d := &Daemon{ctx: t.Context(), guests: t.TempDir(), table: map[string]*entry{}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	dir := filepath.Join(d.guests, "dev")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old, now := newEntry("dev", new(api.Guest)), newEntry("dev", new(api.Guest))
	d.table["dev"] = now
	there := func() bool { _, err := os.Stat(dir); return err == nil && d.table["dev"] == now }

	if err := d.discard(old); err != nil || !there() {
		t.Fatalf("an old entry's removal took the new guest: %v", err)
	}
	now.keeper = new(keeper)
	if err := d.discard(now); err != nil || !there() {
		t.Fatalf("a guest with a keeper was removed: %v", err)
	}
	now.keeper = nil
	if err := d.discard(now); err != nil || there() {
		t.Fatalf("control: it was not removed: %v", err)
	}
}

// A share whose changes wait is left behind only by force.
func TestShareRemovedByForce(t *testing.T) {
	b := newReviewBench(t, fakeStore{Changes: []string{"/a"}}, false, inReviewMode)
	remove := func(force bool) error {
		_, err := b.shares.Remove(context.Background(), connect.NewRequest(&api.RemoveShareRequest{Guest: "g", Path: b.project, Force: force}))
		return err
	}
	if err := remove(false); codeOf(err) != "changes_waiting" {
		t.Errorf("without: %v", err)
	}
	if err := remove(true); err != nil {
		t.Errorf("by force: %v", err)
	}
	if err := remove(true); codeOf(err) != "not_shared" {
		t.Errorf("again: %v", err)
	}
}

// endedEphemeral is a daemon with a guest called dev that has ended with its task.
func endedEphemeral(t *testing.T, guests string) (*Daemon, *entry) {
	d := &Daemon{ctx: t.Context(), guests: guests, table: map[string]*entry{}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	e := newEntry("dev", &api.Guest{Name: "dev", State: api.GuestState_GUEST_STATE_STOPPED, Spec: &api.GuestSpec{Ephemeral: true}})
	d.table["dev"] = e
	return d, e
}

// An ephemeral guest stays until nobody counts what waits of it. The control is
// that it goes then.
func TestNotRemovedUnderWhoCounts(t *testing.T) {
	guests := t.TempDir()
	dir := filepath.Join(guests, "dev")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		d, e := endedEphemeral(t, guests)
		e.looking = true
		go d.leave(t.Context(), e, true)
		time.Sleep(time.Hour)
		over := func() bool {
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.over
		}
		if _, err := os.Stat(dir); err != nil || over() {
			t.Errorf("it was removed under whoever counts: %v", err)
		}
		e.mu.Lock()
		e.looking = false
		e.changedLocked()
		e.mu.Unlock()
		time.Sleep(time.Second)
		if _, err := os.Stat(dir); !os.IsNotExist(err) || !over() || d.removed("dev") != e {
			t.Errorf("control: it is still there: %v", err)
		}
	})
}

// An ephemeral guest that ends while something else is done to it is removed when that
// is done. The control is that nothing is done.
func TestRemovedWhenNobodyIsBusy(t *testing.T) {
	for _, busy := range []bool{true, false} {
		guests := t.TempDir()
		dir := filepath.Join(guests, "dev")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			d, e := endedEphemeral(t, guests)
			if busy {
				if err := e.take("changed"); err != nil {
					t.Fatal(err)
				}
			}
			d.leave(t.Context(), e, true)
			time.Sleep(time.Hour)
			if _, err := os.Stat(dir); os.IsNotExist(err) == busy {
				t.Errorf("somebody is at it %v: its folder: %v", busy, err)
			}
			if busy {
				e.release()
				time.Sleep(time.Second)
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) || d.removed("dev") != e {
				t.Errorf("somebody was at it %v: it is still there: %v", busy, err)
			}
		})
	}
}

// A guest whose shared folder is gone names the way to be rid of it, which is one.
func TestRemovedWithoutItsFolder(t *testing.T) {
	b := newReviewBench(t, fakeStore{Changes: []string{"/a"}}, false, inReviewMode)
	if err := os.RemoveAll(b.project); err != nil {
		t.Fatal(err)
	}
	remove := func(force bool) error {
		_, err := b.guests.Remove(context.Background(), connect.NewRequest(&api.RemoveGuestRequest{Name: "g", Force: force}))
		return err
	}
	if err := remove(false); codeOf(err) != "share_refused" || !strings.Contains(cureOf(err), "carrel rm --force g") {
		t.Errorf("without: %v, to mend it: %s", err, cureOf(err))
	}
	if err := remove(true); err != nil {
		t.Errorf("by force: %v", err)
	}
}
