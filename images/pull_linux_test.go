package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// newLayout makes an OCI layout with one image, whose one file has so many bytes.
func newLayout(t *testing.T, size int) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
	if err := w.WriteHeader(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Config = "linux", runtime.GOARCH, v1.Config{Cmd: []string{"/file"}}
	if img, err = mutate.ConfigFile(img, f); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Variables by which this program, started again by a test, learns what to do.
const (
	childLayout = "CARREL_TEST_LAYOUT"
	childStore  = "CARREL_TEST_STORE"
	childStep   = "CARREL_TEST_STEP"
	childDisk   = "CARREL_TEST_DISK"
)

// TestImportChild is no test: it is what is killed.
func TestImportChild(t *testing.T) {
	if os.Getenv(childLayout) == "" {
		t.Skip("it is started by TestKilledImport and TestFullDisk")
	}
	store := os.Getenv(childStore)
	if size := os.Getenv(childDisk); size != "" {
		if err := unix.Mount("small", store, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	s := Open(store)
	s.step = func(step string) error {
		if step == os.Getenv(childStep) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	_, _, err := s.Import(t.Context(), os.Getenv(childLayout), "box:1", nil)
	if os.Getenv(childDisk) == "" {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	if err == nil {
		fmt.Println("it had room")
		whole(t, s, 1)
		return
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%v, expected that there is no room", err)
	}
	fmt.Println("it had no room")
	whole(t, s, 0)
	if err := unix.Mount("small", store, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Import(t.Context(), os.Getenv(childLayout), "box:1", nil); err != nil {
		t.Fatalf("with room: %v", err)
	}
	whole(t, s, 1)
}

func child(t *testing.T, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestImportChild$", "-test.v")
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// whole fails unless every image that is seen is complete, and there are so many; -1: any number.
func whole(t *testing.T, s *Store, want int) {
	t.Helper()
	all, err := s.List(t.Context())
	if err != nil || want >= 0 && len(all) != want {
		t.Fatalf("%d images are seen, expected %d; %v", len(all), want, err)
	}
	for _, img := range all {
		if err := s.Verify(t.Context(), img.Name); err != nil {
			t.Errorf("half of an image is seen: %v", err)
		}
	}
}

// An import that is killed after any step leaves no image or a whole one, and the next one succeeds. "taken
// away" comes when a damaged image is replaced.
func TestKilledImport(t *testing.T) {
	dir := newLayout(t, 1<<20)
	for _, step := range []string{"fetched", "written", "described", "taken away", "placed", "referenced"} {
		t.Run(step, func(t *testing.T) {
			store := filepath.Join(t.TempDir(), "cache")
			s := Open(store)
			if step == "taken away" {
				img, _, err := s.Import(t.Context(), dir, "box:1", nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(img.Root, 4096); err != nil {
					t.Fatal(err)
				}
			}
			cmd := child(t, childLayout+"="+dir, childStore+"="+store, childStep+"="+step)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("it was not killed: %v\n%s", err, out)
			}
			whole(t, s, -1)
			img, r, err := s.Import(t.Context(), dir, "box:1", nil)
			if err != nil {
				t.Fatalf("after it was killed: %v", err)
			}
			whole(t, s, 1)
			if id, found, err := s.Find("box:1"); err != nil || id != img.Name || found != r {
				t.Errorf("box:1 leads to %s, %v, %v", id, found, err)
			}
			if _, err := s.Prune(t.Context(), func(string) bool { return false }, false, false); err != nil {
				t.Fatal(err)
			}
			whole(t, s, 1)
			if left, _ := filepath.Glob(filepath.Join(store, "half", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// On a disk that is full at any point an import fails and nothing is seen of it; with room it then succeeds.
func TestFullDisk(t *testing.T) {
	dir := newLayout(t, 1<<20)
	room := 0
	for _, size := range []string{"16k", "32k", "64k", "1m", "1200k", "2m", "2200k", "3m", "16m"} {
		store := t.TempDir()
		cmd := child(t, childLayout+"="+dir, childStore+"="+store, childDisk+"="+size)
		id := os.Getuid()
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("a disk of %s: %v\n%s", size, err, out)
		}
		if strings.Contains(string(out), "it had room") {
			room++
		} else if !strings.Contains(string(out), "it had no room") {
			t.Errorf("a disk of %s: neither happened\n%s", size, out)
		}
	}
	if room == 0 || room > 5 {
		t.Errorf("%d of 9 disks had room: that tests nothing", room)
	}
}

// I15: images are imported, pruned, removed and used at once. Who holds one finds it whole until it is given
// back; the control is who only looked: under them it goes.
func TestUseWhileRemoved(t *testing.T) {
	dir := newLayout(t, 64<<10)
	s := Open(filepath.Join(t.TempDir(), "cache"))
	img, _, err := s.Import(t.Context(), dir, "box:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	id := img.Name
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	var removed, lost atomic.Int64
	fine := func(what string, err error) {
		for _, e := range []error{nil, ErrNotFound, ErrInUse, context.Canceled} {
			if errors.Is(err, e) {
				return
			}
		}
		t.Errorf("%s: %v", what, err)
	}
	loop := func(f func()) {
		others.Go(func() {
			for ctx.Err() == nil {
				f()
			}
		})
	}
	loop(func() { _, _, err := s.Import(ctx, dir, "box:1", nil); fine("import", err) })
	loop(func() {
		p, err := s.Prune(ctx, func(string) bool { return false }, true, false)
		fine("prune", err)
		if err == nil {
			removed.Add(int64(len(p.Images)))
		}
	})
	loop(func() {
		err := s.Remove(ctx, "box:1")
		fine("remove", err)
		if err == nil {
			removed.Add(1)
		}
	})
	loop(func() { // the control
		if img, err := s.Get(ctx, id); err == nil {
			if _, err := os.ReadFile(img.Root); errors.Is(err, os.ErrNotExist) {
				lost.Add(1)
			}
			runtime.Gosched()
			if _, err := os.Stat(img.Root); errors.Is(err, os.ErrNotExist) {
				lost.Add(1)
			}
		}
	})
	used := 0
	for tries := 0; tries < 20000 && (used < 200 || removed.Load() < 20 || lost.Load() == 0); tries++ {
		img, release, err := s.Use(ctx, id)
		if err != nil {
			fine("use", err)
			continue
		}
		used++
		for range 3 {
			if _, err := checkPart(ctx, img.Root, img.Manifest.Part(Root)); err != nil {
				t.Errorf("an image went while it was held: %v", err)
			}
		}
		release()
	}
	cancel()
	others.Wait()
	if used == 0 || removed.Load() == 0 || lost.Load() == 0 {
		t.Errorf("used %d times, removed %d times, gone under those who only looked %d times: that tests nothing", used, removed.Load(), lost.Load())
	}
	t.Logf("used %d times, removed %d times, gone under those who only looked %d times", used, removed.Load(), lost.Load())
}
