package main

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/review"
)

// TestStopImports: what a guest has changed is in the review once it is
// stopped, also what a task did while it was told to end, and what was changed
// while none ran.
func TestStopImports(t *testing.T) {
	w, c, _ := newShared(t, wallProcess, hostImage)
	_, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"/bin/sh", "-c",
		"cd /s/review; trap 'echo b >at-the-end; exit 3' TERM; echo a >while-it-ran; while :; do sleep 0.1; done"}})
	if err != nil {
		t.Fatal(err)
	}
	sh(t, c, "box", "", "cd /s/review; until [ -s while-it-ran ]; do sleep 0.1; done")
	if _, err := c.StopGuest(t.Context(), "box", 0); err != nil {
		t.Fatal(err)
	}
	dirs, _ := filepath.Glob(filepath.Join(w.home, "state/guests/box/review/*"))
	var names []string
	for _, d := range dirs {
		s, err := review.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range s.Entries() {
			if e.Blob != "" {
				names = append(names, e.Name)
			}
		}
		s.Close()
	}
	for _, want := range []string{"while-it-ran", "at-the-end"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in the review, which has %q", want, names)
		}
	}
}
