package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// hostMount serves s to this machine's own kernel, so that tests make real system calls: every test of what the server
// refuses has its positive control here, and every operation that the kernel would send is sent by it.
//
// It needs root and /dev/fuse, which `make test` has; without them the test fails and says so.
func hostMount(t *testing.T, s *Server, root string) string {
	t.Helper()
	mnt := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open /dev/fuse: %v (the tests of the share server run as root on a machine with FUSE)", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, MaxWrite)
	if err := unix.Mount("carrel-test", mnt, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		unix.Close(fd)
		t.Fatalf("mount: %v", err)
	}
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() { relay(fd, s) })
	}
	noPoll(t, mnt, root)
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(mnt, unix.MNT_DETACH)
		}
		workers.Wait()
		unix.Close(fd)
	})
	return mnt
}

func relay(fd int, s *Server) {
	in, out := make([]byte, MaxMessage), make([]byte, MaxMessage)
	for {
		n, err := unix.Read(fd, in)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return // ENODEV: unmounted
		}
		if m := s.Serve(in[:n], out); m > 0 {
			_, _ = unix.Write(fd, out[:m]) // ENOENT: the request was interrupted meanwhile
		}
	}
}

// eachBackend runs a test with openat2 and with os.Root. Both serve a folder `root` which has a folder `outside` next to it.
func eachBackend(t *testing.T, o Options, test func(t *testing.T, s *Server, root string)) {
	t.Helper()
	backends := map[string]func(string) (backend, stat, error){"openat2": pin, "os.Root": pinPortable}
	for name, pin := range backends {
		t.Run(name, func(t *testing.T) {
			root := newFolder(t)
			pinned, err := openRoot(root, pin)
			if err != nil {
				t.Fatal(err)
			}
			s := New(pinned, plain(t, o))
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			test(t, s, root)
		})
	}
}

// newFolder gives root, with a canary outside it that the end of the test looks at.
func newFolder(t *testing.T) string {
	t.Helper()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root, outside := filepath.Join(base, "root"), filepath.Join(base, "outside")
	for _, d := range []string{root, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := fingerprint(t, outside)
	t.Cleanup(func() {
		if after := fingerprint(t, outside); after != before {
			t.Errorf("outside the share:\n%s\nwas:\n%s", after, before)
		}
		names, _ := os.ReadDir(base)
		if len(names) != 2 {
			t.Errorf("next to the share there is now %v", names)
		}
	})
	return root
}

// fingerprint lists everything in a folder with contents, modes, owners and modification times.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content := ""
		if info.Mode().IsRegular() {
			c, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(c)
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d %d.%09d %q\n", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// noPoll lets the kernel learn that POLL is not implemented. Go's runtime polls what it opens, and holds a processor meanwhile; a
// process that waits like that for its own file server waits for ever.
func noPoll(t *testing.T, mnt, root string) {
	t.Helper()
	const name = ".carrel-poll"
	if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(mnt, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, name)); err != nil {
		t.Fatal(err)
	}
}
