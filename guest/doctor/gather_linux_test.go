package doctor

import (
	"os"
	"path/filepath"
	"testing"
)

// A tool beside an ordinary user's PATH is there: Debian's has no sbin.
func TestToolInSbin(t *testing.T) {
	before := sbin
	defer func() { sbin = before }()
	dir := t.TempDir()
	t.Setenv("PATH", t.TempDir())
	if err := os.WriteFile(filepath.Join(dir, "mkfs.carrel"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if hasTool("mkfs.carrel") {
		t.Error("control: it was found where nobody looks")
	}
	if sbin = []string{t.TempDir(), dir}; !hasTool("mkfs.carrel") || hasTool("mkfs.none") {
		t.Error("a tool in the second folder was not found, or one that is nowhere was")
	}
}
