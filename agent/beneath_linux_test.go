package agent

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWalkBeneath: both ways of opening agree on what is refused.
func TestWalkBeneath(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"in/a/b", "out"} {
		if err := os.MkdirAll(dir+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"in/up": "../out", "in/abs": dir + "/out", "in/a/self": "b"} {
		if err := os.Symlink(target, dir+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	root, err := unix.Open(dir+"/in", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for name, good := range map[string]bool{
		".": true, "a": true, "a/b": true,
		"..": false, "a/../..": false, "up": false, "up/x": false, "abs": false, "a/self": false, "none": false, "a/none/b": false,
	} {
		for how, open := range map[string]func(int, string, int) (int, error){"openat2": openBeneath, "walk": walkBeneath} {
			fd, err := open(root, name, unix.O_PATH|unix.O_DIRECTORY)
			if (err == nil) != good {
				t.Errorf("%s of %q: %v", how, name, err)
			}
			if err == nil {
				unix.Close(fd)
			}
		}
	}
}
