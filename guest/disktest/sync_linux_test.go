package disktest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSync(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	Sync(t, func() {
		if _, err := f.WriteString("x"); err != nil {
			t.Error(err)
		}
		if err := f.Sync(); !errors.Is(err, unix.EIO) {
			t.Errorf("fsync on that thread: %v", err)
		}
		other := make(chan error)
		go func() { other <- f.Sync() }()
		if err := <-other; err != nil {
			t.Errorf("on another one meanwhile: %v", err)
		}
	})
	if err := f.Sync(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
