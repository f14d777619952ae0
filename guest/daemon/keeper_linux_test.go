package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// alone is a daemon with one guest, whose folder is empty.
func alone(t *testing.T, ctx context.Context, guests string) (d *Daemon, e *entry, dir string) {
	t.Helper()
	d = &Daemon{ctx: ctx, guests: guests, table: map[string]*entry{}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	d.opts.Place.Run = t.TempDir()
	e = newEntry("dev", &api.Guest{Name: "dev", State: api.GuestState_GUEST_STATE_DAMAGED})
	d.table["dev"] = e
	dir = filepath.Join(guests, "dev")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return d, e, dir
}

// noLock makes the lock of a guest's folder one that nobody can open, root
// included.
func noLock(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "lock"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// keeps starts a process that keeper.json names, and calls ended when it has.
func keeps(t *testing.T, dir string, ended func()) (over chan struct{}) {
	t.Helper()
	p := exec.Command("sleep", "100000")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	over = make(chan struct{})
	go func() {
		p.Wait()
		ended()
		close(over)
	}()
	t.Cleanup(func() { p.Process.Kill(); <-over })
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	id := map[string]any{"pid": p.Process.Pid, "start": json.Number(strings.Fields(string(stat))[21]), "boot": strings.TrimSpace(string(boot))}
	b, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keeper.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return over
}

// A guest whose keeper's lock cannot be opened is not taken for gone before its
// process is, and who finds that out does not turn in circles meanwhile.
func TestSettleNeedsProof(t *testing.T) {
	guests := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, e, dir := alone(t, t.Context(), guests)
		noLock(t, dir)
		k := new(keeper)
		e.info.State, e.keeper = api.GuestState_GUEST_STATE_READY, k
		begun := time.Now()
		e.info.StoppedIdle = true // it was about to stop by itself
		if d.settle(t.Context(), e, dir, false) {
			t.Error("nobody can tell whether its keeper lives, and it was taken for gone")
		}
		if info, got, _ := e.get(); got != k || info.State != api.GuestState_GUEST_STATE_READY {
			t.Errorf("it is %v, with the keeper %v", info.State, got)
		}
		if took := time.Since(begun); took < guest.StopBound {
			t.Errorf("it was looked at again after %v", took)
		}
		// The control: its process was ended.
		if !d.settle(t.Context(), e, dir, true) {
			t.Error("control: its keeper was killed")
		}
		if info, got, _ := e.get(); got != nil || info.State != api.GuestState_GUEST_STATE_DAMAGED || info.StoppedIdle {
			t.Errorf("control: it is %v, with the keeper %v; whoever needs it starts it again: %v", info.State, got, info.StoppedIdle)
		}
	})
}

// lingering is an egress process that sees only when it is told that its keeper is gone.
type lingering struct {
	apiconnect.UnimplementedEdgeServiceHandler
	watched, leave chan struct{}
}

func (l *lingering) Watch(ctx context.Context, _ *connect.Request[api.WatchEgressRequest], st *connect.ServerStream[api.EgressEvent]) error {
	st.Send(nil)
	close(l.watched)
	select {
	case <-l.leave:
	case <-ctx.Done():
	}
	return nil
}

// A guest is stopped when its ports are closed: the next one may open the same. The
// control is a guest that has none.
func TestStoppedWithoutPorts(t *testing.T) {
	for _, ports := range [][]*api.Port{{{HostPort: 18080, GuestPort: 80}}, nil} {
		d, e, dir := alone(t, t.Context(), t.TempDir())
		l := &lingering{watched: make(chan struct{}), leave: make(chan struct{})}
		mux := http.NewServeMux()
		mux.Handle(apiconnect.NewEdgeServiceHandler(l))
		srv := httptest.NewServer(mux)
		t.Cleanup(srv.Close)
		e.keeper, e.ports = new(keeper), ports
		e.edge = &edge{own: apiconnect.NewEdgeServiceClient(srv.Client(), srv.URL), close: srv.Client().CloseIdleConnections}
		settled := make(chan struct{})
		go func() { defer close(settled); d.settle(t.Context(), e, dir, false) }()
		select {
		case <-l.watched:
			if _, k, _ := e.get(); k == nil {
				t.Error("it is stopped, and its ports are open")
			}
			close(l.leave)
		case <-settled:
			if len(ports) > 0 {
				t.Error("its egress process was not waited for")
			}
		}
		<-settled
		if _, k, _ := e.get(); k != nil {
			t.Error("it is not stopped")
		}
	}
}

// What removes a guest that was set aside ends its keeper first, or leaves the
// folder to it.
func TestDiscardEndsTheKeeper(t *testing.T) {
	ends := func(t *testing.T, over chan struct{}) {
		t.Helper()
		select {
		case <-over:
		case <-time.After(2 * time.Minute):
			t.Error("its folder is gone, and its keeper goes on")
		}
	}
	ended := func(over chan struct{}) bool {
		select {
		case <-over:
			return true
		default:
			return false
		}
	}
	there := func(dir string) bool { _, err := os.Stat(dir); return err == nil }

	t.Run("lives", func(t *testing.T) {
		d, e, dir := alone(t, t.Context(), t.TempDir())
		unlock, free, err := guest.Lock(dir)
		if err != nil || !free {
			t.Fatal(free, err)
		}
		over := keeps(t, dir, unlock)
		if err := d.discard(e); err != nil || there(dir) {
			t.Fatalf("it was not removed: %v", err)
		}
		ends(t, over)
	})
	t.Run("cannot be ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		d, e, dir := alone(t, ctx, t.TempDir())
		unlock, free, err := guest.Lock(dir) // by whom nothing says
		if err != nil || !free {
			t.Fatal(free, err)
		}
		socket := guest.SocketPath(d.opts.Place.Run, "dev")
		if err := os.WriteFile(socket, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cancel() // instead of waiting for it
		if err := d.discardMine(e); codeOf(err) != "running" || !there(dir) || !there(socket) || d.table["dev"] != e {
			t.Errorf("a guest with a keeper was removed: %v", err)
		}
		unlock()
		d.ctx = t.Context() // the wait that was given up may have the lock for a moment
		if err := d.discardMine(e); err != nil || there(dir) || there(socket) {
			t.Errorf("control: it was not removed: %v", err)
		}
	})
	t.Run("no lock, and it lives", func(t *testing.T) {
		d, e, dir := alone(t, t.Context(), t.TempDir())
		noLock(t, dir)
		over := keeps(t, dir, func() {})
		if err := d.discard(e); err != nil || there(dir) {
			t.Fatalf("it was not removed: %v", err)
		}
		ends(t, over)
	})
	t.Run("no lock, and nobody can tell", func(t *testing.T) {
		d, e, dir := alone(t, t.Context(), t.TempDir())
		noLock(t, dir)
		over := keeps(t, dir, func() {})
		if err := os.WriteFile(filepath.Join(dir, "keeper.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.discard(e); codeOf(err) != "running" || !there(dir) || ended(over) {
			t.Errorf("a guest whose keeper may live was removed: %v", err)
		}
	})
	t.Run("no lock, and no process", func(t *testing.T) {
		d, e, dir := alone(t, t.Context(), t.TempDir())
		noLock(t, dir)
		over := keeps(t, dir, func() {})
		if err := guest.KillKeeper(dir); err != nil {
			t.Fatal(err)
		}
		<-over
		if err := d.discard(e); err != nil || there(dir) {
			t.Errorf("it was not removed: %v", err)
		}
	})
	t.Run("no lock, and never a process", func(t *testing.T) {
		d, e, dir := alone(t, t.Context(), t.TempDir())
		noLock(t, dir)
		if err := d.discard(e); err != nil || there(dir) {
			t.Errorf("it was not removed: %v", err)
		}
	})
}
