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
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
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

// TestFallback: where BPF may not be loaded, as in a user namespace, nftables
// do the work, and the steering says why.
func TestFallback(t *testing.T) {
	const way = "fallback"
	if os.Getenv(insideName) == "" {
		again(t, t.Name(), way)
		return
	}
	s, err := Start(Options{Own: own})
	if err != nil {
		t.Fatal(err)
	}
	answer(t, s)
	if why, ok := strings.CutPrefix(s.How, NFTables+": "); !ok || why == "" {
		t.Errorf("steered by %q", s.How)
	}
	t.Log(s.How)
	wantAnswer(t, "93.184.216.34:443", "steered to 93.184.216.34:443 from "+own.String())
}

// again runs one test in new namespaces. Without root they are those of a new
// user too, where BPF may not be loaded.
func again(t *testing.T, test, way string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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

func ask(to string) (string, error) {
	c, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
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

func TestConnections(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	answer(t, s)
	serve(t, "0.0.0.0:443", "a task's")
	serve(t, "127.0.0.1:8080", "a task's")
	for _, to := range []string{"198.18.1.1:443", "198.18.1.1:80", "93.184.216.34:443", "169.254.169.254:80", "10.1.2.3:22", "198.19.255.254:1", "192.168.1.1:53"} {
		wantAnswer(t, to, "steered to "+to+" from "+own.String())
	}
	// What is local stays local.
	for _, to := range []string{"127.0.0.1:443", "127.0.0.1:8080", "127.9.9.9:443", "198.18.0.1:443"} {
		wantAnswer(t, to, "a task's")
	}
	for _, to := range []string{"127.0.0.1:9", "198.18.0.1:9"} {
		if _, err := ask(to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s, where nobody listens: %v", to, err)
		}
	}
	// The steering's own port is nobody's destination.
	if got, err := ask(listenTCP.String()); !errors.Is(err, unix.ECONNRESET) || got != "" {
		t.Errorf("our own port says %q, %v", got, err)
	}
	start := time.Now()
	for _, to := range []string{"[2001:db8::1]:443", "[fd00::1]:443", "[fe80::1%lo]:443"} {
		if _, err := ask(to); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", to, err)
		}
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("IPv6 took %v to fail", d)
	}
	if got, err := ask("[::ffff:93.184.216.34]:443"); err != nil || !strings.HasPrefix(got, "steered to 93.184.216.34:443") {
		t.Errorf("a mapped address: %q, %v", got, err)
	}
}

// TestDatagrams: DNS arrives, whatever server was meant, and nothing else does.
func TestDatagrams(t *testing.T) {
	s, way := inside(t)
	if s == nil {
		return
	}
	trap, err := net.ListenPacket("udp4", "0.0.0.0:5353") // a task's
	if err != nil {
		t.Fatal(err)
	}
	defer trap.Close()
	fail := func(to string) {
		t.Helper()
		c, err := net.Dial("udp4", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start := time.Now()
		_ = c.SetDeadline(start.Add(5 * time.Second))
		_, err = c.Write([]byte("x"))
		if err == nil {
			_, err = c.Read(make([]byte, 9))
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EPERM) || time.Since(start) > time.Second {
			t.Errorf("a datagram to %s: %v after %v", to, err, time.Since(start))
		}
	}
	for _, to := range []string{"198.18.1.1:443", "8.8.8.8:123", "8.8.8.8:5353", "169.254.169.254:80"} {
		fail(to)
	}
	_ = trap.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, from, err := trap.ReadFrom(make([]byte, 9)); err == nil {
		t.Errorf("a task's socket got a datagram that was not for it, from %v", from)
	}
	// Control: on loopback datagrams arrive.
	c, err := net.Dial("udp4", "127.0.0.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	_ = trap.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := trap.ReadFrom(make([]byte, 9)); err != nil {
		t.Errorf("control: %v", err)
	}
	for _, to := range []string{"127.0.0.1:53", "8.8.8.8:53"} {
		c, err := net.Dial("udp4", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("question"))
		_ = s.DNS.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 99)
		n, _, err := s.DNS.ReadFrom(b)
		if err != nil || string(b[:n]) != "question" {
			t.Errorf("a question to %s (%s): %q, %v", to, way, b[:n], err)
		}
	}
}

// TestEcho: the kernel does not answer pings in the name of the Internet.
func TestEcho(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	if err := ping("127.0.0.1"); err != nil {
		t.Errorf("control: loopback: %v", err)
	}
	if err := ping(own.String()); err != nil {
		t.Errorf("control: own address: %v", err)
	}
	for _, to := range []string{"8.8.8.8", "198.18.1.1"} {
		if err := ping(to); !errors.Is(err, unix.EPERM) {
			t.Errorf("ping %s: %v", to, err)
		}
	}
}

// ping sends one echo request and waits for its answer.
func ping(to string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(to).As4()}); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}); err != nil {
		return err
	}
	b := make([]byte, 128)
	for {
		n, err := unix.Read(fd, b)
		if err != nil {
			return err
		}
		if n >= 28 && b[20] == 0 {
			return nil
		}
	}
}

// TestOwn: addresses that the guest's root gives to devices are local as long
// as they are there.
func TestOwn(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	answer(t, s)
	serve(t, "0.0.0.0:443", "a task's")
	wantAnswer(t, "172.17.0.1:443", "steered to 172.17.0.1:443 from "+own.String())
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.ParseAddr("172.17.0.1/16")
	if err := netlink.AddrAdd(bridge, a); err != nil {
		t.Fatal(err)
	}
	eventually(t, "172.17.0.1:443", "a task's")
	wantAnswer(t, "172.18.0.1:443", "steered to 172.18.0.1:443 from "+own.String())
	if err := netlink.AddrDel(bridge, a); err != nil {
		t.Fatal(err)
	}
	eventually(t, "172.17.0.1:443", "steered to 172.17.0.1:443 from "+own.String())
}

// eventually asks until the news of an address has come round.
func eventually(t *testing.T, to, want string) {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
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

// TestClosed: without the agent there is no way, not even to a task's server.
func TestClosed(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	serve(t, "0.0.0.0:443", "a task's")
	_ = s.Close()
	_ = s.Close()
	if err := s.Wait(); err == nil {
		t.Error("a closed steering follows addresses")
	}
	if got, err := ask("93.184.216.34:443"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("the outside answers %q, %v", got, err)
	}
	wantAnswer(t, "127.0.0.1:443", "a task's")
	if _, err := os.Stat(filepath.Join("/proc", "self")); err != nil {
		t.Fatal(err)
	}
	// It can be started again.
	again, err := Start(Options{Own: own})
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

// TestNested: a container behind a bridge is steered too, by sk_lookup.
func TestNested(t *testing.T) {
	s, way := inside(t)
	if s == nil {
		return
	}
	if way != SkLookup {
		return // with nftables only the namespace itself is
	}
	answer(t, s)
	ns, err := container()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	in := func(f func()) {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine
			err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			if err == nil {
				f()
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	in(func() {
		wantAnswer(t, "93.184.216.34:443", "steered to 93.184.216.34:443 from 172.17.0.2")
		c, err := net.Dial("udp4", "8.8.8.8:443")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 9)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a datagram from the container: %v", err)
		}
	})
}

// container makes a network namespace behind a veth pair with the address
// 172.17.0.2; ours is 172.17.0.1.
func container() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, r.err
	}
	steps := func(h *netlink.Handle, name, cidr string) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		return errors.Join(h.AddrAdd(l, a), h.LinkSetUp(l))
	}
	here, err := netlink.NewHandle()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(r.f.Fd())}
	if err := here.LinkAdd(veth); err != nil {
		return nil, err
	}
	there, err := netlink.NewHandleAt(netns.NsHandle(r.f.Fd()))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := errors.Join(steps(here, "veth0", "172.17.0.1/16"), steps(there, "eth0", "172.17.0.2/16")); err != nil {
		return nil, err
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	return r.f, there.RouteAdd(&netlink.Route{Dst: all, Gw: net.IPv4(172, 17, 0, 1)})
}
