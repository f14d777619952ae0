//go:build unix

package audit

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLinks: a process that may write the folder, and has been taken over, must
// not make another one write elsewhere.
func TestLinks(t *testing.T) {
	dir, other := t.TempDir(), filepath.Join(t.TempDir(), "theirs")
	if err := os.WriteFile(other, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{current, lockName} {
		l := open(t, filepath.Join(dir, "control-"+name))
		add(t, l, 1)
		d := filepath.Join(dir, name)
		os.Mkdir(d, 0o700)
		if err := os.Symlink(other, filepath.Join(d, name)); err != nil {
			t.Fatal(err)
		}
		l, err := Open(d)
		if err == nil {
			err = l.Append("x", nil)
			l.Close()
		}
		if err == nil {
			t.Errorf("%s: a link was followed", name)
		}
		if b, _ := os.ReadFile(other); string(b) != "precious" {
			t.Fatalf("%s: %q", name, b)
		}
	}
}
