package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/agent/names"
	"github.com/carrel-vm/carrel/agent/steer"
	"github.com/carrel-vm/carrel/guest/wire"
)

// insideName tells the test program which steering to try in the network
// namespace that was made for it.
const insideName = "CARREL_AGENT_TEST"

// inside runs the calling test again in a network namespace of its own for
// each way of steering. There it returns the way; here "".
func inside(t *testing.T) string {
	t.Helper()
	if way := os.Getenv(insideName); way != "" {
		return way
	}
	for _, way := range []string{steer.SkLookup, steer.NFTables} {
		t.Run(way, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			test, _, _ := strings.Cut(t.Name(), "/")
			c := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+test+"$", "-test.v=true")
			c.Env = append(os.Environ(), insideName+"="+way)
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
			if os.Geteuid() != 0 {
				if way == steer.SkLookup {
					t.Skip("BPF needs root")
				}
				c.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
				c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
				c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
			}
			out, err := c.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: "+test)) {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
	return ""
}

// outside is the host's end of a guest's streams: what becomes of one is told
// by the name that it is for.
type outside struct {
	t     *testing.T
	mu    sync.Mutex
	opens []*wire.Open
	group sync.WaitGroup
}

func (o *outside) dial(_ context.Context, port uint32) (net.Conn, error) {
	if port != wire.PortEgress {
		return nil, fmt.Errorf("port %d", port)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	guest, err := fileConn(os.NewFile(uintptr(fds[0]), "guest"))
	if err != nil {
		return nil, err
	}
	host, err := fileConn(os.NewFile(uintptr(fds[1]), "host"))
	if err != nil {
		return nil, err
	}
	o.group.Go(func() {
		defer host.Close()
		open := new(wire.Open)
		if err := (protodelim.UnmarshalOptions{MaxSize: 1024}).UnmarshalFrom(bytewise{host}, open); err != nil {
			o.t.Errorf("a stream without Open: %v", err)
			return
		}
		o.mu.Lock()
		o.opens = append(o.opens, open)
		o.mu.Unlock()
		o.serve(host, open)
	})
	return guest, nil
}

const refusal = "HTTP/1.1 403 Refused\r\n\r\nnot in the policy"

func (o *outside) serve(c *net.UnixConn, open *wire.Open) {
	switch open.Host {
	case "echo.test": // until the guest's end, then ours
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	case "byte.test": // the same without a buffer, one byte at a time
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			_, _ = c.Write(b)
		}
	case "last.test": // speaks only after the guest's end
		n, _ := io.Copy(io.Discard, c)
		fmt.Fprintf(c, "%d bytes", n)
	case "silent.test":
	case "refuse.test": // does not listen
		_, _ = io.WriteString(c, refusal)
	default:
		fmt.Fprintf(c, "%s:%d", open.Host, open.Port)
	}
}

// guestWithNetwork is an agent that steers the namespace of this process.
func guestWithNetwork(t *testing.T, way string, s *wire.Setup) (*host, *outside) {
	t.Helper()
	return guestWith(t, way, s, Options{})
}

func guestWith(t *testing.T, way string, s *wire.Setup, opts Options) (*host, *outside) {
	t.Helper()
	o := &outside{t: t}
	opts.DialHost = o.dial
	opts.Network = func() (*steer.Steering, error) {
		return steer.Start(steer.Options{Own: names.Own, NFTables: way == steer.NFTables})
	}
	t.Cleanup(o.group.Wait)
	h := hostWith(t, opts)
	s.UnixNanos, s.Egress = 1, true
	if r := h.setUpReady(s); r.Error != "" || !strings.HasPrefix(r.Steering, way) {
		t.Fatalf("ready says %v, want %s", r, way)
	}
	return h, o
}

// hostWith is the host of an agent in this process with these options.
func hostWith(t *testing.T, opts Options) *host {
	t.Helper()
	return hostOf(t, func(boot, calls *os.File) <-chan error {
		stream, err := fileConn(boot)
		if err != nil {
			t.Fatal(err)
		}
		listener, err := newPassed(calls)
		if err != nil {
			t.Fatal(err)
		}
		opts.Boot, opts.Listener, opts.Mount = stream, listener, mountNone
		ended := make(chan error, 1)
		go func() {
			err := New(opts).Run(context.Background())
			listener.wait()
			ended <- err
		}()
		return ended
	})
}

// resolverHere asks the agent, whatever this machine's resolv.conf says.
var resolverHere = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, "127.0.0.1:53")
}}

func dialName(t *testing.T, to string) (*net.TCPConn, error) {
	t.Helper()
	d := net.Dialer{Resolver: resolverHere, Timeout: patience}
	c, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn), nil
}

func mustDial(t *testing.T, to string) *net.TCPConn {
	t.Helper()
	c, err := dialName(t, to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	if b, err := io.ReadAll(c); err != nil || string(b) != want {
		t.Errorf("read %q, %v, want %q", b, err, want)
	}
}

// wantReset wants a connection that is reset before it says anything, perhaps
// before it is seen to stand.
func wantReset(t *testing.T, to string) {
	t.Helper()
	c, err := dialName(t, to)
	var b []byte
	if err == nil {
		b, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNRESET) || len(b) > 0 {
		t.Errorf("%s: %q, %v, want a reset", to, b, err)
	}
}

func (o *outside) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.opens)
}
