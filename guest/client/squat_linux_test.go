package client

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/carrel-vm/carrel/guest/place"
)

// listenAs serves p.Socket as another user would: the kernel notes who calls
// listen(2), and only this thread is that user while it does.
func listenAs(t *testing.T, p place.Place, uid int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: p.Socket}); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with us
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			errs <- e
			return
		}
		errs <- syscall.Listen(fd, 8)
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

// A03: what another user could have put in our way gets no byte from us.
func TestSquattedSocket(t *testing.T) {
	const nobody = 65534
	root := os.Getuid() == 0
	for _, tc := range []struct {
		name, want string
		root       bool
		squat      func(t *testing.T, p place.Place)
	}{
		{"folder open to others", "mode 0755", false, func(t *testing.T, p place.Place) { os.Chmod(p.Run, 0o755) }},
		{"folder is a link", "not a folder", false, func(t *testing.T, p place.Place) {
			os.Rename(p.Run, p.Run+"2")
			os.Symlink(p.Run+"2", p.Run)
		}},
		{"socket is a link", "not a socket", false, func(t *testing.T, p place.Place) {
			os.Rename(p.Socket, p.Socket+"2")
			os.Symlink(p.Socket+"2", p.Socket)
		}},
		{"socket is a file", "not a socket", false, func(t *testing.T, p place.Place) {
			os.Remove(p.Socket)
			os.WriteFile(p.Socket, nil, 0o600)
		}},
		{"folder of another user", "belongs to user 65534", true, func(t *testing.T, p place.Place) { os.Chown(p.Run, nobody, nobody) }},
		{"socket of another user", "does not belong to you", true, func(t *testing.T, p place.Place) { os.Chown(p.Socket, nobody, nobody) }},
		{"served by another user", "runs as user 65534", true, func(t *testing.T, p place.Place) {
			os.Remove(p.Socket)
			listenAs(t, p, nobody)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.root && !root {
				t.Skip("making files of another user needs root")
			}
			p := home(t)
			newFake().serve(t, p).Close() // the control: unsquatted, it connects
			tc.squat(t, p)
			exe := self(t, p)
			_, err := Connect(t.Context(), Options{Home: p.Home, Daemon: exe})
			if CodeOf(err) != "socket_not_ours" || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want socket_not_ours with %q", err, tc.want)
			}
			if started := pids(t, p); started != nil {
				t.Fatalf("a daemon was started all the same: %v", started)
			}
			if _, err := os.Stat(filepath.Join(p.State, "daemon.log")); err == nil {
				t.Fatal("a daemon's log was made all the same")
			}
		})
	}
}

// A home in which no folder can be made is nobody's attack, and says what to do.
func TestHomeThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, home := range []string{file, filepath.Join(file, "below"), "/proc/self/nobody"} {
		_, err := Connect(t.Context(), Options{Home: home, Daemon: os.Args[0]})
		if CodeOf(err) != "bad_home" || !strings.Contains(err.Error(), "CARREL_HOME") {
			t.Errorf("%s: %v", home, err)
		}
	}
}
