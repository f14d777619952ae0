package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/review"
)

// pointKeep is met only where an ended guest has something to be kept for.
const pointKeep = "keep: before the request"

// F02, too: the daemon dies between the two writes that keep an ephemeral guest
// whose changes wait. The next one keeps it, and with it the way back.
func TestCrashKeep(t *testing.T) {
	w := newRing2(t)
	mark := filepath.Join(w.work, "mark")
	w.env = []string{"CARREL_CRASH=" + pointKeep, "CARREL_CRASH_MARK=" + mark}
	w.start()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	folder := filepath.Join(filepath.Dir(w.work), "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	c := w.client()
	g, err := c.StartGuest(ctx, &api.GuestSpec{Name: "box", Ephemeral: true, Shares: []*api.Share{{Path: folder, Mode: api.ShareMode_SHARE_MODE_RW}}}, client.GuestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The test driver serves no share, so this is what its server would have kept.
	u, err := review.OpenUndo(filepath.Join(w.home, "state", "guests", "box", "review", policy.Layer(g.Spec.Shares[0])))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Session("task"); err != nil {
		t.Fatal(err)
	}
	if err := u.Keep("made", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "made"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := c.StartTask(ctx, client.Task{Guest: "box", Args: []string{"/bin/true"}})
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	w.d.Wait() // it dies at the point
	if _, err := os.Stat(mark); err != nil {
		t.Fatal("the daemon did not come to this point: ", err)
	}
	w.env = nil
	w.start()
	c = w.client()
	for {
		g, err := c.Guest(ctx, "box")
		if err != nil {
			t.Fatal(err)
		}
		if g.Kept == api.GuestKept_GUEST_KEPT_UNDO && g.State == api.GuestState_GUEST_STATE_STOPPED && !g.Spec.Ephemeral {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it is not kept: %v", g)
		}
	}
}
