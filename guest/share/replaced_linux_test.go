package share

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// A protected file that the guest has open to read, and that the host replaces (an editor's save), has no place any more by
// which to judge. What the host has kept of it stays as it was; what the guest may write to is its own.
func TestReplacedUnderHandle(t *testing.T) {
	ruled(t, rules.Options{Mode: rules.ReadWrite}, map[string]string{".envrc": "old", "own": "old"}, func(t *testing.T, g *guest, root string) {
		for name, flags := range map[string]uint32{".envrc": oRdonly, "own": oRdwr} {
			at := filepath.Join(root, name)
			node := g.walk(name)
			fh := g.open(node, flags)
			want(t, "host keeps the old one", os.Rename(at, at+"~"), nil)
			want(t, "host write", os.WriteFile(at, []byte("new"), 0o644), nil)
			if g.walk(name) == node {
				t.Fatalf("%s: still the same node", name)
			}
			for what, parts := range map[string][]any{
				"mode by handle": setattrArgs(fattrMode|fattrFH, fh, 0, 0o777, 0), "mode": setattrArgs(fattrMode, 0, 0, 0o777, 0),
				"times": setattrArgs(fattrMtime|fattrFH, fh, 0, 0, 0),
			} {
				if name == "own" { // the control
					g.must(opSetattr, node, parts...)
					continue
				}
				g.refused(what, opSetattr, node, parts, ePERM)
			}
			fi, err := os.Stat(at + "~")
			want(t, "host stat", err, nil)
			if mode := fi.Mode().Perm(); (mode == 0o777) != (name == "own") {
				t.Errorf("%s: the old file has mode %v", name, mode)
			}
		}
	})
}
