package guest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// unable is a driver that makes no machine.
type unable struct{}

func (unable) Name() string { return "unable" }
func (unable) Create(context.Context, hypervisor.Config, hypervisor.Handlers) (hypervisor.VM, error) {
	return nil, errors.New("no room for the machine")
}

// A guest that was stopped for idleness and whose start for whoever needs it fails,
// or is cut off, is stopped for idleness still. The control is one that its user
// starts.
func TestWakeFails(t *testing.T) {
	run, err := os.MkdirTemp("", "wake") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	for _, wake := range []bool{true, false} {
		guests := t.TempDir()
		dir := filepath.Join(guests, "a")
		spec := &api.GuestSpec{Name: "a", Image: "default", Cpus: 1, MemoryMib: 128, DiskMib: 64}
		if err := Create(guests, "a", spec, Making{}); err != nil {
			t.Fatal(err)
		}
		look := func(when, cause string, idle bool) {
			t.Helper()
			g, _, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			if g.StoppedIdle != idle || !strings.Contains(g.Cause, cause) {
				t.Errorf("%s, started for whoever needs it %v: stopped for idleness %v, cause %q", when, wake, g.StoppedIdle, g.Cause)
			}
		}
		err := Keep(t.Context(),
			KeepRequest{Spec: spec, Rules: policy.Default("/nonexistent"), Parts: policy.Parts{Dir: dir, Kernel: "/k", Initrd: "/i", Root: "/r"}, Socket: filepath.Join(run, "a"), Wake: wake},
			KeepOptions{Driver: unable{}, Log: slog.New(slog.DiscardHandler), Wanted: func() error { return nil }, Listening: func() {}, Describe: func(*api.Guest) {}})
		if err != nil {
			t.Fatal(err)
		}
		look("it failed", "no room for the machine", wake)

		killed := func(states ...string) {
			t.Helper()
			j, _, err := openJournal(filepath.Join(dir, fileJournal))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range states {
				if err := j.add(&record{Guest: &guestRecord{State: s, Idle: wake && s == "starting"}}); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(j.close(), Settle(dir, "killed")); err != nil {
				t.Fatal(err)
			}
		}
		killed("starting")
		look("its keeper was killed", "killed", wake)
		killed("starting", "ready")
		look("its keeper was killed when it was up", "killed", false)
	}
}

// A keeper that comes to its guest's folder when the daemon that had it started has
// died leaves the guest alone: the next daemon may have found the folder without a
// keeper, and takes the guest for stopped.
func TestKeeperComesLate(t *testing.T) {
	for _, died := range []int{0, 1, 2} { // before, as the lock is had, never
		guests := t.TempDir()
		dir := filepath.Join(guests, "a")
		spec := &api.GuestSpec{Name: "a", Image: "default", Cpus: 1, MemoryMib: 128}
		if err := Create(guests, "a", spec, Making{}); err != nil {
			t.Fatal(err)
		}
		run, err := os.MkdirTemp("", "carrel-late-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(run) })
		asked, gone := 0, errors.New("gone")
		err = Keep(t.Context(),
			KeepRequest{Spec: spec, Rules: policy.Default("/nonexistent"), Parts: policy.Parts{Dir: dir, Kernel: "/k", Initrd: "/i", Root: "/r"}, Socket: filepath.Join(run, "a")},
			KeepOptions{Driver: unable{}, Log: slog.New(slog.DiscardHandler), Listening: func() {}, Describe: func(*api.Guest) {}, Wanted: func() error {
				unlock, free, err := Lock(dir)
				if err != nil || free != (asked == 0) {
					t.Errorf("asked %d times before, the folder has no keeper: %v %v", asked, free, err)
				}
				if free {
					unlock()
				}
				if asked++; asked > died {
					return gone
				}
				return nil
			}})
		_, hist, lerr := Load(dir)
		if lerr != nil {
			t.Fatal(lerr)
		}
		if died < 2 && (err != gone || hist.last != nil) || died == 2 && (err != nil || hist.last == nil) {
			t.Errorf("asked %d times: %v, and the journal has %v", asked, err, hist.last)
		}
		unlock, free, err := Lock(dir)
		if err != nil || !free {
			t.Fatalf("the folder has a keeper still: %v", err)
		}
		unlock()
	}
}
