package agent

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/carrel-vm/carrel/guest/wire"
)

// What is made on the way to a volume's place belongs to whom the folder above
// belongs to.
func TestMakeLike(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test gives folders to other users: run it as root, as make test does in CI")
	}
	top := t.TempDir()
	home := filepath.Join(top, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, taskID, taskID); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(top, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	owner := func(path string) uint32 {
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Uid
	}
	for _, p := range []string{"home/.cache/go/build", "elsewhere/deep"} {
		if err := makeLike(filepath.Join(top, p)); err != nil {
			t.Error(err)
		}
		if err := makeLike(filepath.Join(top, p)); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	for p, want := range map[string]uint32{"home/.cache": taskID, "home/.cache/go/build": taskID, "elsewhere/deep": 0, "home": taskID} {
		if got := owner(filepath.Join(top, p)); got != want {
			t.Errorf("%s belongs to %d, want %d", p, got, want)
		}
	}
	if err := makeLike(filepath.Join(top, "file", "x")); err == nil {
		t.Error("a file became a folder")
	}
	if err := makeLike(filepath.Join(top, "file")); err == nil {
		t.Error("a file is a place for a volume")
	}
}

// A volume is found by its serial number and by nothing else.
func TestNoSuchVolume(t *testing.T) {
	v := new(volumes)
	if err := v.mount([]*wire.Mount{{Tag: "volume7", Path: "/nowhere/cache"}}); err == nil {
		t.Error("a disk that is not there was mounted")
	}
	if err := v.mount([]*wire.Mount{{Tag: "../vda", Path: "/nowhere/cache"}}); err == nil {
		t.Error("a malformed serial number was taken")
	}
	if _, err := os.Lstat("/nowhere"); err == nil {
		t.Error("a place was made for a volume that is not there")
	}
}
