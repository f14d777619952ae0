package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
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
	var how string
	h := hostOf(t, func(boot, calls *os.File) <-chan error {
		ended := make(chan error, 1)
		stream, err := fileConn(boot)
		if err != nil {
			t.Fatal(err)
		}
		listener, err := newPassed(calls)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			opts.Boot, opts.Listener, opts.DialHost, opts.Mount = stream, listener, o.dial, mountNone
			opts.Network = func() (*steer.Steering, error) {
				st, err := steer.Start(steer.Options{Own: names.Own, NFTables: way == steer.NFTables})
				if err == nil {
					how = st.How
				}
				return st, err
			}
			err := New(opts).Run(context.Background())
			listener.wait()
			ended <- err
		}()
		return ended
	})
	t.Cleanup(o.group.Wait)
	s.UnixNanos, s.Egress = 1, true
	if e := h.setUp(s); e != "" {
		t.Fatal(e)
	}
	if !strings.HasPrefix(how, way) {
		t.Fatalf("steered by %q, want %s", how, way)
	}
	return h, o
}

// resolverHere asks the agent, whatever this machine's resolv.conf says.
var resolverHere = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, "127.0.0.1:53")
}}

func dialName(t *testing.T, to string) (*net.TCPConn, error) {
	t.Helper()
	d := net.Dialer{Resolver: resolverHere, Timeout: 10 * time.Second}
	c, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
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

func TestEgress(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	_, o := guestWithNetwork(t, way, &wire.Setup{})
	for to, want := range map[string]string{
		"www.Example.test:443": "www.example.test:443",
		"example.test.:80":     "example.test:80",
		"93.184.216.34:22":     "93.184.216.34:22",
		"169.254.169.254:80":   "169.254.169.254:80",
	} {
		wantRead(t, mustDial(t, to), want)
	}
	// Both ways with half-close, also the silent way round.
	c := mustDial(t, "echo.test:1")
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	go func() {
		_, _ = c.Write(big)
		_ = c.CloseWrite()
	}()
	if b, err := io.ReadAll(c); err != nil || !bytes.Equal(b, big) {
		t.Errorf("%d bytes came back, %v", len(b), err)
	}
	c = mustDial(t, "last.test:1")
	_, _ = c.Write([]byte("12345"))
	_ = c.CloseWrite()
	wantRead(t, c, "5 bytes")

	// A refusal is read though the client is still sending.
	c = mustDial(t, "refuse.test:80")
	go func() { _, _ = c.Write(big) }()
	if b, err := io.ReadAll(c); string(b) != refusal {
		t.Errorf("the refusal is read as %q, %v", b, err)
	}
	// A stream that ends before it said anything is a reset.
	c = mustDial(t, "silent.test:1")
	if b, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a silent end is %q, %v", b, err)
	}
	// So is an address of the table that no name has. Nothing is asked of the
	// host.
	before := o.count()
	c = mustDial(t, "198.19.7.7:443")
	if b, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("an address that nobody has been given says %q, %v", b, err)
	}
	if o.count() != before {
		t.Error("the host was asked for an address that nobody has been given")
	}
	for _, name := range []string{"localhost:9", "single:443"} {
		start := time.Now()
		if _, err := dialName(t, name); err == nil || time.Since(start) > 2*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
	}
	// DNS is answered in the name of any server, over TCP too.
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, "8.8.8.8:53")
		}}
		a, err := r.LookupHost(t.Context(), "example.test")
		if err != nil || len(a) != 1 || !names.Synthetic.Contains(netip.MustParseAddr(a[0])) {
			t.Errorf("8.8.8.8 over %s says %v, %v", network, a, err)
		}
	}
}

func (o *outside) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.opens)
}

// TestManyConnections: silent connections cost little, the bound holds, and
// places come back.
func TestManyConnections(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < 5000 {
		t.Fatalf("this test needs 5000 open files, %d are allowed (ulimit -n), %v", lim.Cur, err)
	}
	_, _ = guestWithNetwork(t, way, &wire.Setup{})
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	addr, err := resolverHere.LookupHost(t.Context(), "byte.test")
	if err != nil {
		t.Fatal(err)
	}
	to := net.JoinHostPort(addr[0], "443")
	before := used()
	var conns []*net.TCPConn
	one := make([]byte, 1)
	for range maxRelays {
		c := mustDial(t, to)
		_, _ = c.Write([]byte("x"))
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
		conns = append(conns, c)
	}
	// The client and the host's end are in this process too.
	each := (used() - before) / maxRelays
	t.Logf("%d bytes a connection, with the test's own part", each)
	if each > 40<<10 {
		t.Errorf("a silent connection takes %d bytes", each)
	}
	c, err := dialName(t, to)
	if err == nil {
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("one more than the bound: %v", err)
	}
	for _, c := range conns[:10] {
		_ = c.CloseWrite()
		wantRead(t, c, "")
	}
	// The places come back when the relays have seen both ends.
	end := time.Now().Add(10 * time.Second)
	for {
		c, err := dialName(t, to)
		if err == nil {
			_, _ = c.Write([]byte("y"))
			if _, err = io.ReadFull(c, one); err == nil {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("no place comes back: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestManyNames: several thousand names, each with its own connection.
func TestManyNames(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	_, _ = guestWithNetwork(t, way, &wire.Setup{})
	seen := make(map[string]bool)
	for i := range 4000 {
		name := fmt.Sprintf("host-%d.example.test", i)
		a, err := resolverHere.LookupHost(t.Context(), name+".")
		if err != nil || len(a) != 1 || seen[a[0]] {
			t.Fatalf("%s: %v, %v", name, a, err)
		}
		seen[a[0]] = true
		if i%200 == 0 {
			wantRead(t, mustDial(t, net.JoinHostPort(a[0], "443")), name+":443")
		}
	}
	back, err := resolverHere.LookupAddr(t.Context(), "198.18.1.1")
	if err != nil || len(back) != 1 || back[0] != "host-0.example.test." {
		t.Errorf("198.18.1.1 is %q, %v", back, err)
	}
}

// TestWayOutBreaks: when a part of the way out ends, so does the guest.
func TestWayOutBreaks(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	var s *steer.Steering
	o := &outside{t: t}
	h := hostOf(t, func(boot, calls *os.File) <-chan error {
		stream, err := fileConn(boot)
		if err != nil {
			t.Fatal(err)
		}
		listener, err := newPassed(calls)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			err := New(Options{Boot: stream, Listener: listener, DialHost: o.dial, Network: func() (_ *steer.Steering, err error) {
				s, err = steer.Start(steer.Options{Own: names.Own, NFTables: way == steer.NFTables})
				return s, err
			}}).Run(context.Background())
			listener.wait()
			ended <- err
		}()
		return ended
	})
	if e := h.setUp(&wire.Setup{UnixNanos: 1, Egress: true}); e != "" {
		t.Fatal(e)
	}
	wantRead(t, mustDial(t, "a.test:443"), "a.test:443")
	l, err := net.Listen("tcp4", "0.0.0.0:443") // a task's
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = s.TCP.Close()
	select {
	case err := <-h.ended:
		if err == nil || !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "way out") {
			t.Errorf("the agent ended with %v", err)
		}
		h.ended <- err
	case <-time.After(10 * time.Second):
		t.Fatal("the agent goes on without its listener")
	}
	if _, err := net.DialTimeout("tcp", "93.184.216.34:443", time.Second); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("an outside address reaches a task's server: %v", err)
	}
}

// TestTaskOfConnection: the host is told whose a connection is, with control
// groups, also when the task has made one of its own, and without.
func TestTaskOfConnection(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	connect := func(port int) string { return fmt.Sprintf("exec 3<>/dev/tcp/93.184.216.34/%d; cat <&3", port) }
	try := func(t *testing.T, cgroup string, scripts map[string]string) {
		h, o := guestWith(t, way, &wire.Setup{MaxTasks: 4}, Options{Cgroup: cgroup})
		for id, script := range scripts {
			s := h.exec(&wire.Exec{Argv: []string{"/bin/bash", "-c", script}, Id: id, Cwd: "/"})
			s.wait()
			s.wantExit(0, 0)
		}
		wantRead(t, mustDial(t, "93.184.216.34:3"), "93.184.216.34:3") // nobody's
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, open := range o.opens {
			if want := map[uint32]string{1: "01TASK", 2: "02TASK"}[open.Port]; open.Task != want {
				t.Errorf("%v is said to be the task's %q, want %q", open, open.Task, want)
			}
		}
		if len(o.opens) != len(scripts)+1 {
			t.Errorf("%d connections", len(o.opens))
		}
	}
	t.Run("processes", func(t *testing.T) {
		try(t, "", map[string]string{"01TASK": connect(1), "02TASK": connect(2)})
	})
	if os.Geteuid() != 0 || way == steer.NFTables && unprivileged() {
		return // control groups are root's
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	group := filepath.Join(dir, fmt.Sprintf("carrel-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Rmdir(group) }()
	t.Run("groups", func(t *testing.T) {
		sub := group + "/02TASK/sub"
		try(t, group, map[string]string{
			"01TASK": connect(1),
			"02TASK": "mkdir " + sub + "; echo $$ >" + sub + "/cgroup.procs; " + connect(2),
		})
	})
	t.Run("inodes", func(t *testing.T) {
		a := filepath.Join(group, "03TASK")
		if err := os.Mkdir(a, 0o755); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Rmdir(a) }()
		st, err := os.Stat(a)
		if err != nil {
			t.Fatal(err)
		}
		o := newOwners(group)
		defer o.close()
		ino := st.Sys().(*syscall.Stat_t).Ino
		if got := o.byInode(ino); got != "03TASK" {
			t.Errorf("inode %d is the task's %q", ino, got)
		}
		if got := o.byInode(ino + 1<<40); got != "" {
			t.Errorf("an inode of no group's is %q", got)
		}
	})
}

// unprivileged says whether root here is somebody else outside.
func unprivileged() bool {
	b, _ := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return len(f) == 3 && f[2] == "1"
}

// TestForward: the host reaches a server on the guest's loopback.
func TestForward(t *testing.T) {
	h := ready(t)
	forward := func(port int) (*session, *wire.Forwarded) {
		t.Helper()
		s := h.call(&wire.Call{Kind: &wire.Call_Forward{Forward: &wire.Forward{Port: uint32(port)}}})
		f := new(wire.Forwarded)
		if err := (protodelim.UnmarshalOptions{MaxSize: 4096}).UnmarshalFrom(bytewise{s.conn}, f); err != nil {
			t.Fatal(err)
		}
		return s, f
	}
	for _, on := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		var server sync.WaitGroup
		server.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				b, _ := io.ReadAll(c)
				fmt.Fprintf(c, "got %s", b)
				_ = c.Close()
			}
		})
		port := l.Addr().(*net.TCPAddr).Port
		for _, say := range []string{"hello", ""} {
			s, f := forward(port)
			if f.Error != "" {
				t.Fatal(f.Error)
			}
			_, _ = io.WriteString(s.conn, say)
			_ = s.conn.CloseWrite()
			wantRead(t, s.conn, "got "+say)
		}
		_ = l.Close()
		server.Wait()
		if _, f := forward(port); !strings.Contains(f.Error, "refused") {
			t.Errorf("a port where nobody listens: %q", f.Error)
		}
	}
	for _, port := range []int{0, 1 << 16, 1 << 30} {
		if _, f := forward(port); !strings.Contains(f.Error, "1 to 65535") {
			t.Errorf("port %d: %q", port, f.Error)
		}
	}
}

// TestRefusals: lines are made harmless, the file is bounded, and no link is
// followed.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	a := &Agent{o: Options{Refusals: filepath.Join(dir, "refusals.log")}}
	read := func() string {
		b, err := os.ReadFile(a.o.Refusals)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := a.refused([]string{"one\x1b[31m\nline", "two"}); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "one?[31m line\ntwo\n" {
		t.Errorf("%q", got)
	}
	line := strings.Repeat("x", maxRefusal-1)
	for i := range 3000 {
		if err := a.refused([]string{fmt.Sprint(i%10, line)}); err != nil {
			t.Fatal(err)
		}
	}
	got := read()
	if len(got) > maxRefusals || len(got) < maxRefusals/2 || !strings.HasSuffix(got, "9"+line+"\n") || !strings.HasPrefix(got[1:], line+"\n") {
		t.Errorf("%d bytes, from %.20q", len(got), got)
	}
	if err := a.refused(make([]string, maxRefusedLines+1)); err == nil {
		t.Error("any number of lines is taken")
	}
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(a.o.Refusals)
	if err := os.Symlink(target, a.o.Refusals); err != nil {
		t.Fatal(err)
	}
	if err := a.refused([]string{"x"}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link is followed: %v", err)
	}
	if b, _ := os.ReadFile(target); len(b) != 0 {
		t.Errorf("%q behind the link", b)
	}
	if err := (&Agent{}).refused([]string{"x"}); err != nil {
		t.Error(err)
	}
}
