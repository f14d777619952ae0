package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/review"
)

// pointChange is met only where a review process has died.
const pointChange = "change: before what is left of it is finished"

// F02: a review process dies in the middle of an apply, and the daemon with it,
// as when a machine goes down. The next daemon leaves no name of ours in the
// user's folder, without anybody asking for anything; what was in its place counts
// as applied, and the rest waits as before. Where only the review process dies,
// the daemon that sees it does the same at once.
func TestRecoverAtStart(t *testing.T) {
	for _, point := range []string{"created", "journaled", "exchanged", "taken", "committed", "synced"} {
		for _, both := range []bool{true, false} {
			name := point + ", alone"
			if both {
				name = point + ", with the daemon"
			}
			t.Run(name, func(t *testing.T) { recoverAtStart(t, point, both) })
		}
	}
}

func recoverAtStart(t *testing.T, point string, both bool) {
	w := newRing2(t)
	ref := reviewedIn(t, filepath.Join(w.work, "folder"), filepath.Join(w.work, "store"))
	mark := filepath.Join(w.work, "mark")
	w.env = []string{"CARREL_CRASH_REVIEW=" + point, "CARREL_CRASH_REVIEW_MARK=" + filepath.Join(ref.Path, "mark"), "CARREL_CRASH_MARK=" + mark}
	if both {
		w.env = append(w.env, "CARREL_CRASH="+pointChange)
	}
	w.start()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := w.client()
	g, err := c.StartGuest(ctx, &api.GuestSpec{Name: "box", Shares: []*api.Share{{Path: ref.Path, Mode: api.ShareMode_SHARE_MODE_REVIEW}}}, client.GuestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StopGuest(ctx, "box", 0); err != nil {
		t.Fatal(err)
	}
	// The test driver serves no share: this is what its process would have kept.
	dir := filepath.Join(w.home, "state", "guests", "box")
	store := filepath.Join(dir, "review", policy.Layer(g.Spec.Shares[0]))
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(store), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(ref.Store, store); err != nil {
		t.Fatal(err)
	}
	killed := c.Apply(ctx, "box", client.ApplyOptions{}, func(*api.ApplyEvent) error { return nil })
	if killed == nil {
		t.Fatal("the apply of a process that was killed came to a good end")
	}
	if _, err := os.Lstat(filepath.Join(ref.Path, "mark")); err != nil {
		t.Fatalf("no process came to this point: %v: %v", killed, err)
	}
	names := func() (all []string) {
		es, err := os.ReadDir(ref.Path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if e.Name() != "mark" {
				all = append(all, e.Name())
			}
		}
		return all
	}
	ours := func(n string) bool { return n[0] == '.' }
	if both {
		w.d.Wait()
		// The control: the kill did leave something.
		if point != "synced" && !slices.ContainsFunc(names(), ours) {
			t.Errorf("a kill at %q leaves only %q, so nothing is tried here", point, names())
		}
		w.env = nil
		w.start()
	}
	eventually(t, "the folder has no name of ours", func() bool {
		_, err := os.Lstat(filepath.Join(dir, "changing"))
		return os.IsNotExist(err)
	})
	if slices.ContainsFunc(names(), ours) {
		t.Errorf("the folder has %q", names())
	}
	// What is told as waiting and what the folder has are one truth.
	s, err := review.Open(store)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	waits := map[string]bool{}
	for _, e := range s.Entries() {
		waits[e.Name] = true
	}
	for name, is := range map[string]struct{ old, now string }{"f": {"old\n", "new\n"}, "g": {"old\n", ""}, "h": {"", "new\n"}} {
		b, _ := os.ReadFile(filepath.Join(ref.Path, name))
		if string(b) != is.old && string(b) != is.now {
			t.Errorf("%s holds %q", name, b)
		}
		if waits[name] != (string(b) == is.old) {
			t.Errorf("%s holds %q, and waits: %v", name, b, waits[name])
		}
	}
	// And all goes on from there.
	c = w.client()
	if err := c.Apply(ctx, "box", client.ApplyOptions{}, func(e *api.ApplyEvent) error {
		if e.Refused != "" {
			t.Errorf("%s: %s", e.Path, e.Refused)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if got := names(); !slices.Equal(got, []string{"f", "h"}) {
		t.Errorf("in the end there is %q", got)
	}
}
