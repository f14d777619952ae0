package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/policy"
)

// onePool keeps one small guest warm.
const onePool = "version: 1\npool: {size: 1, memory: 128MiB, disk: 64MiB}\n"

// pooled is what a guest of it is asked for as.
func pooled() *api.GuestSpec { return &api.GuestSpec{MemoryMib: 128, DiskMib: 64} }

// withPool starts a daemon with a pool.
func withPool(t *testing.T) *world {
	w := newRing2(t)
	if err := os.MkdirAll(filepath.Join(w.home, "config"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(w.home, "config", "policy.yaml"), onePool)
	w.start()
	return w
}

// aWarm returns the name of the guest in the pool, and its keeper, when that says
// that the guest is ready.
func (w *world) aWarm() (string, apiconnect.KeeperServiceClient, apiconnect.TaskServiceClient) {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		es, err := os.ReadDir(filepath.Join(w.home, "state", "guests"))
		if err != nil || len(es) != 1 || es[0].Name()[0] == '.' {
			continue
		}
		name := es[0].Name()
		h := unixClient(guest.SocketPath(filepath.Join(w.home, "run"), name))
		k := apiconnect.NewKeeperServiceClient(h, "http://keeper")
		st, err := k.Watch(w.t.Context(), connect.NewRequest(&api.WatchRequest{}))
		if err != nil {
			continue
		}
		for st.Receive() && st.Msg().State != api.GuestState_GUEST_STATE_READY {
		}
		st.Close()
		if st.Err() == nil {
			return name, k, apiconnect.NewTaskServiceClient(h, "http://keeper")
		}
	}
	w.t.Fatal("no guest was warm within 2 minutes")
	return "", nil, nil
}

// A guest of the pool is nobody's before its claim: it runs nothing, whoever asks,
// and the API does not know it. It is claimed once, and as what it is only.
func TestClaimOnce(t *testing.T) {
	w := withPool(t)
	name, k, tasks := w.aWarm()
	c := w.raw()
	defer c.close()
	run := func() error {
		_, err := tasks.Start(t.Context(), connect.NewRequest(&api.StartTaskRequest{Guest: name, Spec: &api.TaskSpec{Argv: []string{"/bin/true"}}}))
		return err
	}
	claim := func(change func(*api.GuestSpec)) error {
		spec := &api.GuestSpec{Name: name, Image: "default", Cpus: policy.DefaultCPUs, MemoryMib: 128, DiskMib: 64}
		change(spec)
		_, err := k.ClaimGuest(t.Context(), connect.NewRequest(&api.ClaimGuestRequest{Spec: spec, Rules: []byte(`{"MaxCPUs":2,"MaxMemoryMiB":1024,"MaxDiskMiB":1024,"MaxShares":1}`)}))
		return err
	}
	if err := run(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a task in a guest that is nobody's: %v", err)
	}
	if _, err := c.guests.Inspect(t.Context(), connect.NewRequest(&api.InspectGuestRequest{Name: name})); word(err) != "not_found" {
		t.Errorf("inspect: %v", err)
	}
	if _, err := c.run(t.Context(), &api.StartTaskRequest{Guest: name, Spec: &api.TaskSpec{Argv: []string{"/bin/true"}}}); word(err) != "not_found" {
		t.Errorf("a task by the daemon: %v", err)
	}
	if _, err := c.start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: name}}); word(err) != "name_taken" {
		t.Errorf("a start under its name: %v", err)
	}
	for what, change := range map[string]func(*api.GuestSpec){
		"another name": func(s *api.GuestSpec) { s.Name = "box" },
		"more memory":  func(s *api.GuestSpec) { s.MemoryMib = 256 },
		"a volume":     func(s *api.GuestSpec) { s.Volumes = []*api.VolumeMount{{Name: "v", GuestPath: "/v"}} },
		"more than the policy grants": func(s *api.GuestSpec) {
			s.Egress = &api.EgressSpec{Secrets: []string{"nobodys"}}
		},
	} {
		if err := claim(change); word(err) != "claim" {
			t.Errorf("a claim of %s: %v", what, err)
		}
	}
	// None of that has taken it: a request gets it, and nobody after that.
	g, err := c.start(t.Context(), &api.StartGuestRequest{Spec: pooled()})
	if err != nil || g.Name != name {
		t.Fatalf("the request got %v, not %s: %v", g, name, err)
	}
	if err := run(); err != nil {
		t.Errorf("a task in a guest that is somebody's: %v", err)
	}
	if err := claim(func(*api.GuestSpec) {}); word(err) != "claim" {
		t.Errorf("a second claim: %v", err)
	}
}

// A guest that is nobody's ends with its daemon: at once where that is asked to
// end, and by the next one where it was killed.
func TestPoolEndsWithDaemon(t *testing.T) {
	w := withPool(t)
	name, k, _ := w.aWarm()
	watch := func() *connect.ServerStreamForClient[api.Guest] {
		st, err := k.Watch(t.Context(), connect.NewRequest(&api.WatchRequest{}))
		if err != nil || !st.Receive() {
			t.Fatalf("its keeper does not answer: %v", err)
		}
		return st
	}
	defer watch().Close() // so that it does not end because nobody watches it
	w.d.Process.Kill()
	w.d.Wait()
	watch().Close() // and it did not go with the daemon
	write(t, filepath.Join(w.home, "config", "policy.yaml"), "version: 1\n")
	w.start()
	dir := filepath.Join(w.home, "state", "guests", name)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(dir); os.IsNotExist(err) {
			return // newRing2 looks for its processes
		}
		if time.Now().After(deadline) {
			t.Fatal("2 minutes went by, and the next daemon has not removed it")
		}
	}
}

// A pool that has lost a guest has another when a guest that is somebody's ends.
func TestPoolIsRefilledAtAnEnd(t *testing.T) {
	w := withPool(t)
	name, _, _ := w.aWarm()
	c := w.raw()
	defer c.close()
	if _, err := c.start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: "box", MemoryMib: 128, DiskMib: 64}}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(w.home, "state", "guests", name)
	if err := guest.KillKeeper(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the warm guest is gone", func() bool { _, err := os.Lstat(dir); return os.IsNotExist(err) })
	if _, err := c.guests.Remove(t.Context(), connect.NewRequest(&api.RemoveGuestRequest{Name: "box", Force: true})); err != nil {
		t.Fatal(err)
	}
	w.aWarm()
}

// A guest of the pool stands still while it waits, and its claim lets it go on: it
// is somebody's then like any other, and is paused for nobody.
func TestPoolRests(t *testing.T) {
	w := withPool(t)
	name, k, _ := w.aWarm()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st, err := k.Watch(ctx, connect.NewRequest(&api.WatchRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for st.Receive() && st.Msg().Paused == nil {
	}
	if err := st.Err(); err != nil {
		t.Fatal("it is never paused: ", err)
	}
	c := w.raw()
	defer c.close()
	g, err := c.start(ctx, &api.StartGuestRequest{Spec: pooled()})
	if err != nil || g.Name != name || g.State != api.GuestState_GUEST_STATE_READY {
		t.Fatalf("claimed: %v %v", g, err)
	}
	for st.Receive() && (st.Msg().Paused != nil || st.Msg().GetSpec().GetEphemeral()) {
	}
	if err := st.Err(); err != nil {
		t.Error("its keeper: ", err)
	}
	st.Close()
	if _, err := c.run(ctx, &api.StartTaskRequest{Guest: name, Spec: &api.TaskSpec{Argv: []string{"/bin/true"}}}); err != nil {
		t.Error(err)
	}
}
