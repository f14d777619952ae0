package steer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// insideName tells the test program that it runs in the namespace made for it.
const insideName = "CARREL_STEER_TEST"

// TestMain also is a test in a namespace of its own.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var own = netip.MustParseAddr("198.18.0.1")

// ways are the two of steering, each with where it is tried: BPF needs root.
var ways = []struct {
	name string
	o    Options
}{
	{SkLookup, Options{Own: own}},
	{NFTables, Options{Own: own, NFTables: true}},
}

// inside runs the calling test again in a process with a network namespace of
// its own, once per way, and returns false there; in that process it returns
// the steering. The test's own process returns nil.
func inside(t *testing.T) (*Steering, string) {
	t.Helper()
	if way := os.Getenv(insideName); way != "" {
		for _, w := range ways {
			if w.name == way {
				s, err := Start(w.o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Close() })
				if !strings.HasPrefix(s.How, way) {
					t.Fatalf("steered by %q, want %s", s.How, way)
				}
				return s, way
			}
		}
		t.Fatalf("no way %q", way)
	}
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			again(t, strings.Split(t.Name(), "/")[0], w.name)
		})
	}
	return nil, ""
}

// again runs one test in new namespaces. Without root they are those of a new
// user too, where BPF may not be loaded.
func again(t *testing.T, test, way string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	c := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+test+"$", "-test.v=true")
	c.Env = append(os.Environ(), insideName+"="+way)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	switch {
	case way == "fallback":
		userNamespace(c.SysProcAttr)
	case os.Geteuid() == 0:
	case way == SkLookup:
		t.Skip("BPF needs root")
	default:
		userNamespace(c.SysProcAttr)
	}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// userNamespace makes the child root of a user namespace.
func userNamespace(a *syscall.SysProcAttr) {
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
}

// answer accepts steered connections and tells each where it was to go.
func answer(t *testing.T, s *Steering) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := s.TCP.AcceptTCP()
			if err != nil {
				return
			}
			to, err := s.Original(c)
			if err != nil {
				_ = c.SetLinger(0)
			} else {
				fmt.Fprintf(c, "steered to %s from %s", to, c.RemoteAddr().(*net.TCPAddr).IP)
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = s.Close(); <-done })
}

// patience bounds each wait for what has to come: on a busy machine that may be
// long, and a test that passes does not take longer for it.
const patience = 5 * time.Minute

// timedOut says whether somebody waited in vain, where a refusal comes at once.
func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func ask(to string) (string, error) {
	c, err := net.DialTimeout("tcp", to, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	return string(b), err
}

func wantAnswer(t *testing.T, to, want string) {
	t.Helper()
	if got, err := ask(to); err != nil || got != want {
		t.Errorf("%s answers %q, %v, want %q", to, got, err, want)
	}
}

// serve is a task's server.
func serve(t *testing.T, on, say string) {
	t.Helper()
	l, err := net.Listen("tcp4", on)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, say)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

// ping sends one echo request and waits for its answer.
func ping(to string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)})
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(to).As4()}); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}); err != nil {
		return err
	}
	b := make([]byte, 128)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR { // with a timeout the kernel does not go on by itself (signal(7))
			continue
		}
		if err != nil {
			return err
		}
		if n >= 28 && b[20] == 0 {
			return nil
		}
	}
}

// eventually asks until the news of an address has come round.
func eventually(t *testing.T, to, want string) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		got, err := ask(to)
		if err == nil && got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s answers %q, %v, want %q", to, got, err, want)
		}
		time.Sleep(time.Millisecond)
	}
}
