//go:build unix

package daemon

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// volumeOf is a daemon with a guest that has a volume.
func volumeOf(t *testing.T, ephemeral bool) (d *Daemon, e *entry, remove func(force bool) error) {
	t.Helper()
	d = newDaemon(t)
	if err := os.MkdirAll(d.volumeDir("npm"), 0o700); err != nil {
		t.Fatal(err)
	}
	e = newEntry("box", &api.Guest{Name: "box", State: api.GuestState_GUEST_STATE_READY, Spec: &api.GuestSpec{Ephemeral: ephemeral, Volumes: []*api.VolumeMount{{Name: "npm", GuestPath: "/x"}}}})
	e.keeper = new(keeper)
	d.table["box"] = e
	return d, e, func(force bool) error {
		_, err := (&diskService{d}).RemoveVolume(t.Context(), connect.NewRequest(&api.RemoveVolumeRequest{Name: "npm", Force: force}))
		return err
	}
}

// ended is what follow makes of a guest whose keeper is gone.
func (e *entry) ended() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keeper, e.info.State = nil, api.GuestState_GUEST_STATE_STOPPED
	e.changedLocked()
}

// A volume is removed right after a run that had it: its guest is waited for, and the
// guest's own removal.
func TestVolumeRemovedAfterItsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, e, remove := volumeOf(t, true)
		done := make(chan error, 1)
		go func() { done <- remove(false) }()
		waits := func(until string) {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatalf("until %s: %v", until, err)
			default:
			}
		}
		time.Sleep(guest.StopBound)
		waits("its keeper is gone")
		e.ended()
		time.Sleep(time.Second)
		waits("it is removed")
		d.mu.Lock()
		delete(d.table, "box")
		d.mu.Unlock()
		e.settled()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(d.volumeDir("npm")); !os.IsNotExist(err) {
			t.Errorf("it is still there: %v", err)
		}
	})
}

// What a volume is not removed for is said with what can be done then.
func TestVolumeNotRemoved(t *testing.T) {
	for _, tc := range []struct {
		name      string
		ephemeral bool
		before    func(*entry)
		code      string
		took      time.Duration
		cure      string
	}{
		{"a guest runs", false, func(*entry) {}, "volume_in_use", 0, "carrel rm --force box, or carrel stop box and then carrel volume rm --force npm"},
		{"a run goes on", true, func(*entry) {}, "volume_in_use", time.Second + guest.StopBound + guest.StopFlush, "try again when its task has ended, or after carrel stop box"},
		{"a guest names it", false, (*entry).ended, "in_use", 0, "carrel rm box, or carrel volume rm --force npm"},
		{"a run's guest waits for its caller", true, func(e *entry) { e.ended(); e.settled() }, "in_use", 0, "carrel rm box, or carrel volume rm --force npm"},
		{"a run's guest does not go", true, (*entry).ended, "in_use", guest.StopBound, "carrel rm box, or carrel volume rm --force npm"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, e, remove := volumeOf(t, tc.ephemeral)
				tc.before(e)
				begun := time.Now()
				err := remove(false)
				if codeOf(err) != tc.code || !strings.HasPrefix(cureOf(err), tc.cure) {
					t.Errorf("%v, to mend it: %s", err, cureOf(err))
				}
				if took := time.Since(begun); took != tc.took {
					t.Errorf("it took %v", took)
				}
				if _, err := os.Lstat(d.volumeDir("npm")); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
