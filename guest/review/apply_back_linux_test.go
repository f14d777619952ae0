package review

import (
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
