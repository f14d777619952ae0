package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// What needs a guest that is being started waits for the end of that, whoever starts
// it and whatever the guest says of itself meanwhile: between its ready and the end
// of its start it forgets what was discarded.
func TestUpWaitsForTheStart(t *testing.T) {
	const starting, ready = api.GuestState_GUEST_STATE_STARTING, api.GuestState_GUEST_STATE_READY
	type step struct {
		state api.GuestState
		done  bool // with the start
		up    bool
	}
	for name, steps := range map[string][]step{
		"started by this daemon":       {{starting, false, false}, {ready, false, false}, {ready, true, true}},
		"started by one before":        {{starting, true, false}, {ready, true, true}},
		"the control: one that is up":  {{ready, true, true}},
		"started, and said late of it": {{starting, false, false}, {starting, true, false}, {ready, true, true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEntry("box", &api.Guest{Name: "box", State: steps[0].state})
				d := &Daemon{ctx: t.Context(), table: map[string]*entry{"box": e}}
				e.keeper = new(keeper)
				if !steps[0].done {
					if err := e.take("started"); err != nil {
						t.Fatal(err)
					}
				}
				up := make(chan *keeper, 1)
				go func() {
					_, k, err := d.up(t.Context(), "box")
					if err != nil {
						t.Error(err)
					}
					up <- k
				}()
				for i, s := range steps {
					if s.done && e.starts() {
						e.release()
					}
					e.set(&api.Guest{Name: "box", State: s.state})
					synctest.Wait()
					select {
					case k := <-up:
						if !s.up || k != e.keeper {
							t.Errorf("step %d: it is said to be up, with %v", i, k)
						}
					default:
						if s.up {
							t.Errorf("step %d: it is not up", i)
						}
					}
				}
			})
		})
	}
}

// Who stops a guest that waits for its turn to start again, since somebody needs it,
// means it: the start is given up. One that its user has asked for is not.
func TestStopGivesUpAWake(t *testing.T) {
	d := newDaemon(t)
	if err := os.WriteFile(filepath.Join(d.opts.Place.Config, policyFile), []byte("version: 1\nlimits: {starts: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(d.guests, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := guest.Create(d.guests, "box", &api.GuestSpec{Name: "box"}, guest.Making{}); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		d.ctx = t.Context()
		e := newEntry("box", &api.Guest{Name: "box", Spec: &api.GuestSpec{Name: "box"}, State: api.GuestState_GUEST_STATE_STOPPED, StoppedIdle: true})
		d.table["box"] = e
		leave, err := d.starts.enter(t.Context(), caller{}, 1, 8, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
		up := make(chan error, 1)
		go func() {
			_, _, err := d.up(t.Context(), "box")
			up <- err
		}()
		synctest.Wait()
		waits := func() int {
			d.starts.mu.Lock()
			defer d.starts.mu.Unlock()
			return len(d.starts.waiting)
		}
		if n := waits(); n != 1 {
			t.Fatalf("%d starts wait for their turn", n)
		}
		stop := func() error {
			_, err := (&guestService{d}).Stop(t.Context(), connect.NewRequest(&api.StopGuestRequest{Name: "box"}))
			return err
		}
		if err := stop(); err != nil {
			t.Fatalf("a stop while it waits to start: %v", err)
		}
		if err := <-up; wordOf(err) != "not_running" {
			t.Errorf("who needed it was told %v", err)
		}
		if info, _, _ := e.get(); info.StoppedIdle || waits() != 0 {
			t.Errorf("it is %v, and %d starts wait", info, waits())
		}
		e.set(&api.Guest{Name: "box", State: api.GuestState_GUEST_STATE_STOPPED, StoppedIdle: true})
		if err := e.take("started"); err != nil {
			t.Fatal(err)
		}
		if err := stop(); wordOf(err) != "busy" {
			t.Errorf("the control, one that its user starts: %v", err)
		}
	})
}
