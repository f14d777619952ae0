package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/policy"
)

// F02: the daemon dies when it has just started a keeper, which comes to its guest's
// folder only after the next daemon has looked there. It leaves the guest alone, which
// would else run with nobody knowing of it. The control is a keeper whose daemon waits
// for its word.
func TestKeeperOfADeadDaemon(t *testing.T) {
	for _, waits := range []bool{false, true} {
		w := newRing2(t)
		guests := filepath.Join(w.home, "state", "guests")
		if err := os.MkdirAll(filepath.Join(w.home, "run"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(guests, 0o700); err != nil {
			t.Fatal(err)
		}
		spec := &api.GuestSpec{Name: "box", Image: "default", Cpus: 1, MemoryMib: 128}
		if err := guest.Create(guests, "box", spec, guest.Making{}); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(guests, "box")
		b, err := json.Marshal(guest.KeepRequest{Spec: spec, Rules: policy.Default("/nonexistent"), Parts: policy.Parts{Dir: dir, Kernel: "/k", Initrd: "/i", Root: "/r"}, Socket: filepath.Join(w.home, "run", "k")})
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		keeper := exec.CommandContext(ctx, filepath.Join(w.bin, "carreld"), "keep")
		keeper.Env, keeper.Stderr = append(os.Environ(), "CARREL_HOME="+w.home), &said
		o := startOwn(t, keeper, !waits, func(request, word, link *os.File) []inherit.Handed {
			return []inherit.Handed{request, word, link}
		})
		if _, err := o.request.Write(b); err != nil {
			t.Fatal(err)
		}
		o.request.Close()
		if waits {
			if word, err := o.word(); word != "listening" {
				t.Errorf("control: it says %q: %v", word, err)
			}
			keeper.Process.Signal(syscall.SIGTERM)
		}
		err = keeper.Wait()
		o.link.Close()
		if !waits && (err == nil || !strings.Contains(said.String(), "the daemon that started this keeper is gone")) {
			t.Errorf("it ends with %v: %s", err, said.String())
		}
		if _, err := os.Stat(filepath.Join(dir, "journal")); os.IsNotExist(err) == waits {
			t.Errorf("a daemon waits %v: the guest's journal: %v; %s", waits, err, said.String())
		}
	}
}

// F02, too: the same of an egress process, whose guest the next daemon may have started
// anew meanwhile. It leaves the socket to the process of that. The control is one whose
// daemon waits for its word.
func TestEgressOfADeadDaemon(t *testing.T) {
	for _, waits := range []bool{false, true} {
		top, err := os.MkdirTemp("", "carrel-e-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(top) })
		socket, log := filepath.Join(top, "e"), filepath.Join(top, "audit")
		if err := os.Mkdir(log, 0o700); err != nil {
			t.Fatal(err)
		}
		theirs, err := guest.ListenPrivate(socket)
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		var said strings.Builder
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		egress := exec.CommandContext(ctx, filepath.Join(binaries(t), "carreld"), "egress")
		egress.Stderr = &said
		was, err := os.Stat(socket)
		if err != nil {
			t.Fatal(err)
		}
		o := startOwn(t, egress, !waits, egressGets)
		if err := guest.WriteEdgeRequest(o.request, guest.EdgeRequest{Guest: "box", Socket: socket, Audit: log, Configure: new(api.ConfigureEdgeRequest)}); err != nil {
			t.Fatal(err)
		}
		o.request.Close()
		if waits {
			if word, err := o.word(); word != "serving" {
				t.Errorf("control: it says %q: %v", word, err)
			}
		}
		o.link.Close()
		err = egress.Wait()
		if !waits && (err == nil || !strings.Contains(said.String(), "the daemon that started this egress process is gone")) {
			t.Errorf("it ends with %v: %s", err, said.String())
		}
		if is, err := os.Stat(socket); (err == nil && os.SameFile(was, is)) == waits {
			t.Errorf("a daemon waits %v: the socket that was there: %v %v", waits, is, err)
		}
	}
}
