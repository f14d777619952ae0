package review

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A program of the host's that is quicker twice, before the exchange and before
// it is taken back, has what it wrote under its name, and nothing of ours is left.
func TestApplyTakenBack(t *testing.T) {
	defer func(was func(string)) { crash = was }(crash)
	for _, removes := range []bool{false, true} {
		w := newDesk(t, map[string]string{"a": "old"})
		w.guest(Entry{Name: "a", Kind: File, Target: "guest"})
		name := filepath.Join(w.host, "a")
		crash = func(at string) {
			switch at {
			case "journaled": // an editor saves
				if err := os.WriteFile(name+".new", []byte("theirs"), 0o600); err != nil {
					t.Error(err)
				}
				if err := os.Rename(name+".new", name); err != nil {
					t.Error(err)
				}
			case "exchanged":
				if removes {
					if err := os.Remove(name); err != nil {
						t.Error(err)
					}
				}
			}
		}
		got := w.apply(ApplyOptions{})
		crash = func(string) {}
		if got["a"] == "" || w.file("a") != "theirs" || strings.Contains(w.tree(), tmpPrefix) {
			t.Errorf("removes %v: %v\n%s", removes, got, w.tree())
		}
	}
}

// Who puts something in the place of ours before it is taken back is told where
// that is.
func TestApplyTakenBackTwice(t *testing.T) {
	if !exchanges(t) {
		t.Skip("nothing is exchanged here")
	}
	defer func(was func(string)) { crash = was }(crash)
	w := newDesk(t, map[string]string{"a": "old"})
	w.guest(Entry{Name: "a", Kind: File, Target: "guest"})
	name := filepath.Join(w.host, "a")
	save := func(content string) {
		if err := errors.Join(os.WriteFile(name+".new", []byte(content), 0o600), os.Rename(name+".new", name)); err != nil {
			t.Error(err)
		}
	}
	crash = func(at string) {
		switch at {
		case "journaled":
			save("theirs")
		case "exchanged":
			save("theirs, too")
		}
	}
	got := w.apply(ApplyOptions{})
	crash = func(string) {}
	names, err := filepath.Glob(filepath.Join(w.host, tmpPrefix+"*"))
	if err != nil || len(names) != 1 || w.file("a") != "theirs" || w.file(filepath.Base(names[0])) != "theirs, too" || !strings.Contains(got["a"], filepath.Base(names[0])) {
		t.Errorf("%v, %v\n%s", got, err, w.tree())
	}
}
