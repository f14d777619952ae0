package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/wire"
)

// confinedEgressDir tells a copy of this test which folder is left to it, as to
// an egress process.
const confinedEgressDir = "CARREL_TEST_CONFINED_EGRESS_DIR"

// tryConfinedEgress prints what works, before it confines itself as an egress
// process does and after.
func tryConfinedEgress(dir string) {
	sock := func(domain, kind, proto int) func() error {
		return func() error {
			fd, err := unix.Socket(domain, kind, proto)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	pair := func(kind int) func() error {
		return func() error {
			fds, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
			if err == nil {
				unix.Close(fds[0])
				unix.Close(fds[1])
			}
			return err
		}
	}
	tries := []try{
		{"read elsewhere", func() error { _, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "secret")); return err }},
		{"write elsewhere", func() error {
			return os.WriteFile(filepath.Join(filepath.Dir(dir), "elsewhere"), nil, 0o600)
		}},
		{"exec", func() error { return exec.Command("/bin/true").Run() }},
		{"unix socket", sock(unix.AF_UNIX, unix.SOCK_STREAM, 0)},
		{"vsock", sock(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{"packets", sock(unix.AF_PACKET, unix.SOCK_RAW, 0)},
		{"another netlink", sock(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC)},
		{"pair of datagrams", pair(unix.SOCK_DGRAM)},
		{"signal", func() error { return syscall.Kill(os.Getppid(), 0) }},
		{"limits", func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }},
		{"own folder", func() error { return os.WriteFile(filepath.Join(dir, "own"), nil, 0o600) }},
		{"hosts", func() error { _, err := os.ReadFile("/etc/hosts"); return err }},
		{"tcp", func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer l.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err == nil {
				c.Close()
			}
			return err
		}},
		{"udp", func() error {
			c, err := net.Dial("udp", "127.0.0.1:53")
			if err == nil {
				c.Close()
			}
			return err
		}},
		{"own addresses", func() error { _, err := net.InterfaceAddrs(); return err }},
		{"pair of streams", pair(unix.SOCK_STREAM)},
	}
	tries = append(append(tries, unconfined(dir)...), confinable()...)
	run := func(when string) {
		for _, x := range tries {
			word := "works"
			if err := x.f(); err != nil {
				word = "denied"
			}
			fmt.Printf("%s %s: %s\n", when, x.name, word)
		}
	}
	run("before")
	if err := confineEgress(dir); err != nil {
		fmt.Println("confine:", err)
		os.Exit(1)
	}
	run("after")
	var core unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_CORE, &core)
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	fmt.Printf("core %d, dumpable %d\n", core.Max, dumpable)
}

// An egress process that was taken over has the internet, and nothing of this
// machine: not the daemon's socket, nor any other program's, nor a file.
func TestConfineEgress(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(top, "secret"), "x")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{confinedEgressDir + "=" + dir}
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	tried := map[string]string{
		"read elsewhere": "denied", "write elsewhere": "denied", "exec": "denied", "unix socket": "denied", "packets": "denied",
		"another netlink": "denied", "pair of datagrams": "denied", "signal": "denied", "limits": "denied",
		"own folder": "works", "hosts": "works", "tcp": "works", "udp": "works", "own addresses": "works", "pair of streams": "works",
	}
	for _, n := range names(unconfined(dir)) {
		tried[n] = "denied"
	}
	for _, n := range names(confinable()) {
		tried[n] = "works"
	}
	for name, after := range tried {
		if !strings.Contains(string(b), "before "+name+": works\n") && name != "packets" || !strings.Contains(string(b), "after "+name+": "+after+"\n") {
			t.Errorf("%s:\n%s", name, b)
		}
	}
	for _, want := range []string{"after vsock: denied\n", "core 0, dumpable 0\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("not %q:\n%s", want, b)
		}
	}
}

// edgeProcess is an egress process whose keeper and daemon the test plays.
type edgeProcess struct {
	t      *testing.T
	cmd    *exec.Cmd
	link   *link.Conn
	api    apiconnect.EdgeServiceClient
	trust  []byte
	said   chan *link.Message
	inward chan net.Conn
	dir    string
}

// startEdge starts an egress process of a guest called box.
func startEdge(t *testing.T, conf *api.ConfigureEdgeRequest) (*edgeProcess, error) {
	t.Helper()
	top, err := os.MkdirTemp("", "carrel-e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	p := &edgeProcess{t: t, said: make(chan *link.Message, 1024), inward: make(chan net.Conn, 16), dir: filepath.Join(top, "audit")}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(filepath.Join(binaries(t), "carreld"), "egress")
	p.cmd.Env, p.cmd.Stderr = []string{"PATH=" + os.Getenv("PATH")}, os.Stderr
	o := startOwn(t, p.cmd, false, egressGets)
	socket := filepath.Join(top, "e")
	if err := guest.WriteEdgeRequest(o.request, guest.EdgeRequest{Guest: "box", Socket: socket, Audit: p.dir, Configure: conf}); err != nil {
		t.Fatal(err)
	}
	o.request.Close()
	if p.link, err = link.New(o.link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.link.Close()
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	if word, err := o.word(); word != "serving" {
		return nil, fmt.Errorf("%s: %v", word, err)
	}
	var tr link.Trust
	for done := false; !done; {
		m, _, err := p.link.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if done, err = tr.Add(m); err != nil {
			t.Fatal(err)
		}
	}
	p.trust = tr.PEM()
	go func() {
		for {
			m, c, err := p.link.Receive()
			if err != nil {
				close(p.said)
				return
			}
			if c != nil {
				p.inward <- c
			}
			if m.Kind != link.Ended && m.Kind != link.Ports { // which is the keeper's book-keeping
				p.said <- m
			}
		}
	}()
	p.api = apiconnect.NewEdgeServiceClient(guest.NewHTTPClient(socket), "http://edge")
	return p, nil
}

// open hands over a stream to a host, as a keeper does.
func (p *edgeProcess) open(host string, port uint32) net.Conn {
	p.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if err := p.link.Send(&link.Message{Kind: link.Stream}, theirs); err != nil {
		p.t.Fatal(err)
	}
	if err := wire.Write(c, &wire.Open{Host: host, Port: port, Task: "01JD8Q8ZV6Q2W7KXS2M0T4RBNE"}); err != nil {
		p.t.Fatal(err)
	}
	return c
}

// echo is a server on the host's loopback.
func echo(t *testing.T) uint32 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	return uint32(ln.Addr().(*net.TCPAddr).Port)
}

func says(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("%q %v", b, err)
	}
}

// hostInternal is the name of the host's loopback.
const hostInternal = "host.carrel.internal"

func allowPort(port uint32) *api.ConfigureEdgeRequest {
	return &api.ConfigureEdgeRequest{Rules: []*api.EgressRule{{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: hostInternal, Ports: []uint32{port}, Origin: "test"}}}
}

// The real process, confined: what is allowed passes, what is not is refused and
// said, live changes close what they no longer cover, all of it is recorded, and
// it ends with its keeper.
func TestEgressProcessAlone(t *testing.T) {
	port := echo(t)
	p, err := startEdge(t, allowPort(port))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(p.trust), "BEGIN CERTIFICATE") {
		t.Errorf("it says to trust %q", p.trust)
	}
	c := p.open(hostInternal, port)
	says(t, c, "through")

	no := p.open("nowhere.example", 443)
	if b, _ := io.ReadAll(no); len(b) > 64 {
		t.Errorf("a refused connection got %q", b)
	}
	m := <-p.said
	if m.Kind != link.Refused || m.Task != "01JD8Q8ZV6Q2W7KXS2M0T4RBNE" || !strings.Contains(m.Line, "carrel allow box nowhere.example") {
		t.Errorf("it says %+v", m)
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begin := time.Now()
	res, err := p.api.Configure(ctx, connect.NewRequest(&api.ConfigureEdgeRequest{}))
	if err != nil || res.Msg.Closed != 1 {
		t.Fatalf("%v %v", res, err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a connection that no rule covers goes on: %v", err)
	}
	t.Logf("it was closed after %v", time.Since(begin))
	if _, err := p.api.Configure(ctx, connect.NewRequest(&api.ConfigureEdgeRequest{Rules: []*api.EgressRule{{Action: 1, Host: "a b"}}})); err == nil {
		t.Error("a rule that is none was taken")
	}
	if _, err := p.api.Configure(ctx, connect.NewRequest(allowPort(port))); err != nil {
		t.Fatal(err)
	}
	says(t, p.open(hostInternal, port), "and again")

	st, err := p.api.Watch(ctx, connect.NewRequest(&api.WatchEgressRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[api.EgressEventKind]int{}
	for st.Receive() {
		kinds[st.Msg().Kind]++
	}
	st.Close()
	if st.Err() != nil || kinds[api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT] != 3 {
		t.Errorf("%v %v", kinds, st.Err())
	}

	p.link.Close() // the keeper is gone
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("it outlives its keeper")
	}
	rep, err := audit.Verify(p.dir)
	if err != nil || !rep.Intact || rep.Records < 4 {
		t.Errorf("%+v %v", rep, err)
	}
}

// A port of the host leads to the keeper, which has it connected.
func TestEgressProcessPort(t *testing.T) {
	p, err := startEdge(t, &api.ConfigureEdgeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.api.Publish(t.Context(), connect.NewRequest(&api.PublishRequest{Port: &api.Port{GuestPort: 80}}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", net.JoinHostPort(res.Msg.Port.HostAddress, strconv.Itoa(int(res.Msg.Port.HostPort))))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	in := <-p.inward
	defer in.Close()
	if m := <-p.said; m.Kind != link.Forward || m.Port != 80 {
		t.Errorf("%+v", m)
	}
	go io.Copy(in, in)
	says(t, c, "into the guest")
}

// Rules that cannot be read stop the start, and so does a missing audit folder.
func TestEgressProcessRefusesToStart(t *testing.T) {
	if _, err := startEdge(t, &api.ConfigureEdgeRequest{Rules: []*api.EgressRule{{Action: 1, Host: "a b", Origin: "policy.yaml:3"}}}); err == nil || !strings.Contains(err.Error(), "policy.yaml:3") {
		t.Errorf("a rule that is none: %v", err)
	}
	if p, err := startEdge(t, &api.ConfigureEdgeRequest{}); err != nil { // the control
		t.Errorf("%v %v", p, err)
	}
}
