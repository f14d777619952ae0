package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/agent/proxy"
	"github.com/carrel-vm/carrel/guest/wire"
)

// besideName tells the test program that its agents are such that run beside
// their tasks.
const besideName = "CARREL_AGENT_BESIDE"

// newBeside starts such an agent in this process, with a listener for its proxy
// or without, and reads its Hello.
func newBeside(t *testing.T, listener *os.File) *host {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "agent")
	var calls *net.UnixConn
	h := hostOf(t, func(boot, theirs *os.File) <-chan error {
		ended := make(chan error, 1)
		go func() {
			ended <- runBeside(context.Background(), BesideOptions{
				Boot: boot, Calls: theirs, Dir: dir, Proxy: listener,
				NewProxy: func(l net.Listener, dial func(context.Context) (net.Conn, error)) (Proxy, error) {
					return proxy.New(l, dial)
				},
			})
		}()
		return ended
	})
	h.beside, calls = true, h.calls
	if listener == nil { // else the test answers the agent
		go io.Copy(io.Discard, calls) // what has arrived; ends with the socket
	}
	return h
}

// besideNot are tests of what an agent beside its tasks does not do, and why.
var besideNot = map[string]string{
	"TestSetupRefused": "where a share is to be is not its affair; what it refuses: TestBesideRefuses",
	"TestExecUser":     "there is one user",
	"TestPlantedShell": "there is one user",
	"TestCopyUser":     "there is one user",
	"TestExecSeccomp":  "its wall is the host's, which is there before it",
	"TestDisconnect":   "who leaves the task's session is not found: TestBesideSession",
	"TestDescendants":  "who leaves the task's session is not found: TestBesideSession",
	"TestAgentKilled":  "a system without PR_SET_PDEATHSIG: the driver ends what is left, package seatbelt",
	"TestRefusals":     "of a function, not of an agent",
}

// TestBeside runs the tests of tasks, copies, forwarded ports and the end again
// with such an agent: all but those of besideNot.
func TestBeside(t *testing.T) {
	var all []string
	for _, file := range []string{"exec", "control", "copy", "forward"} {
		b, err := os.ReadFile(file + "_linux_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(b, -1) {
			all = append(all, string(m[1]))
		}
	}
	for name, why := range besideNot {
		if !slices.Contains(all, name) {
			t.Errorf("there is no %s", name)
		}
		t.Logf("not %s: %s", name, why)
	}
	all = slices.DeleteFunc(all, func(name string) bool { return besideNot[name] != "" })
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^("+strings.Join(all, "|")+")$", "-test.v=true", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), besideName+"=1", "PATH="+defaultPath, "LANG=C.UTF-8")
	out, err := cmd.CombinedOutput()
	for _, name := range all {
		if !bytes.Contains(out, []byte("--- PASS: "+name+" ")) {
			t.Errorf("%s did not pass", name)
		}
	}
	if err != nil || t.Failed() {
		t.Fatalf("%v\n%s", err, out)
	}
}

func readyBeside(t *testing.T) *host {
	t.Helper()
	h := newBeside(t, nil)
	if e := h.setUp(&wire.Setup{MaxTasks: 8}); e != "" {
		t.Fatal(e)
	}
	return h
}

// TestBesideRefuses: what cannot be had is refused by its name.
func TestBesideRefuses(t *testing.T) {
	for _, tc := range []struct {
		m    *wire.Mount
		want string
	}{
		{&wire.Mount{Tag: "share0", Type: "virtiofs", Path: "/mnt"}, "mounts nothing"},
		{&wire.Mount{Tag: "share0", Type: "none", Path: "/mnt", Overlay: true}, "layer"},
		{&wire.Mount{Tag: "share0", Type: "none", Path: "/mnt", Layer: "x"}, "layer"},
	} {
		t.Run(tc.want, func(t *testing.T) { // and one agent in this process at a time: each reaps all
			if e := newBeside(t, nil).setUp(&wire.Setup{Mounts: []*wire.Mount{tc.m}}); !strings.Contains(e, tc.want) {
				t.Errorf("%v: ready says %q", tc.m, e)
			}
		})
	}
	h := newBeside(t, nil)
	if e := h.setUp(&wire.Setup{Mounts: []*wire.Mount{{Tag: "share0", Type: "none", Path: "/mnt", ReadOnly: true}}}); e != "" {
		t.Fatalf("control: ready says %q", e)
	}
	for want, e := range map[string]*wire.Exec{
		"nothing limits": {Limits: &wire.Limits{MemoryBytes: 1 << 30}},
		"a task's":       {Limits: &wire.Limits{Pids: 5}},
		"(leave":         {Limits: &wire.Limits{CpuMillis: 500}},
		"no user":        {User: "daemon"},
	} {
		e.Argv = []string{"/bin/true"}
		s := h.exec(e)
		s.wait()
		if s.failed == nil || !strings.Contains(s.failed.Message, want) {
			t.Errorf("%v: %v %v", e, s.exit, s.failed)
		}
	}
	s := h.exec(&wire.Exec{Argv: []string{"/bin/true"}, User: fmt.Sprint(os.Geteuid()), Limits: &wire.Limits{OpenFiles: 99}})
	s.wait()
	s.wantExit(0, 0) // the control
	if e := h.put(&wire.Put{Path: t.TempDir(), User: "daemon"}); !strings.Contains(e, "no user") {
		t.Errorf("a copy as another user: %q", e)
	}
	for _, c := range []*wire.Control{
		{Id: 1, Kind: &wire.Control_Attach{Attach: &wire.Mount{}}}, {Id: 2, Kind: &wire.Control_Detach{Detach: &wire.Detach{}}},
		{Id: 3, Kind: &wire.Control_Refresh{Refresh: &wire.Refresh{}}},
	} {
		if a := h.control(c); !strings.Contains(a.Error, "fixed at its start") {
			t.Errorf("%v: %v", c, a)
		}
	}
	if e := newBeside(t, nil).setUpReady(&wire.Setup{Egress: true}); e.Error != "" || e.Steering != noSteering {
		t.Errorf("a way out without a listener: %v", e)
	}
}

// TestBesideSession: what a task leaves in its session ends with it, in whatever
// process group. What has made a session of its own goes on: nothing on a system
// without namespaces and control groups finds it from in there.
func TestBesideSession(t *testing.T) {
	h := readyBeside(t)
	const mark, away = "9876.541", "9876.542"
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "set -m; sleep " + mark + " & set +m; sleep " + mark + " & setsid sh -c 'echo away; exec sleep " + away + "' & read x; exit 2"}, Stdin: true})
	s.until("away\n")
	s.stdin("go\n")
	s.wait()
	s.wantExit(2, 0)
	gone(t, mark)
	if !alive(away) {
		t.Error("what left its session is found now: the docs say otherwise")
	}
	_ = exec.Command("pkill", "-f", "^sleep "+away).Run()
	s = h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "sleep " + mark + " & echo up; wait"}})
	s.until("up\n")
	if !alive(mark) {
		t.Fatal("control: the task's processes do not run")
	}
	_ = s.conn.Close() // the host is gone
	gone(t, mark)
}

// TestBesideHeld: a process that has left its task's session and keeps the
// task's terminal or pipes does not hold up the task's end.
func TestBesideHeld(t *testing.T) {
	h := readyBeside(t)
	const mark = "9876.543"
	defer func() { _ = exec.Command("pkill", "-f", "^sleep "+mark).Run() }()
	for _, tty := range []bool{false, true} {
		s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "setsid sh -c 'echo child; exec sleep " + mark + "' & read x; echo parent"}, Tty: tty, Stdin: true})
		s.until("child")
		s.stdin("go\n")
		s.wait() // or the connection's time is over first: the sleep's is longer
		s.wantExit(0, 0)
		if !alive(mark) {
			t.Error("nobody kept it: no proof")
		}
	}
}

func TestBesideSettles(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a host"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	h := newBeside(t, nil)
	if e := h.setUp(&wire.Setup{Trust: []byte(certificate), GitHosts: []string{"github.com"}, Env: []string{"TOKEN=placeholder", "LANG=setup"}}); e != "" {
		t.Fatal(e)
	}
	s := h.sh(`for v in NODE_EXTRA_CA_CERTS SSL_CERT_FILE CURL_CA_BUNDLE GIT_SSL_CAINFO REQUESTS_CA_BUNDLE PIP_CERT CARGO_HTTP_CAINFO DENO_CERT; do
		eval "cat \$$v" | grep -q carrel && echo "$v bundle" || { eval "cat \$$v" | grep -q BEGIN && echo "$v"; }
	done; git config --system --get-regexp url; echo $TOKEN $LANG`)
	s.wantExit(0, 0)
	if got := s.stdout.String(); got != `NODE_EXTRA_CA_CERTS
SSL_CERT_FILE bundle
CURL_CA_BUNDLE bundle
GIT_SSL_CAINFO bundle
REQUESTS_CA_BUNDLE bundle
PIP_CERT bundle
CARGO_HTTP_CAINFO bundle
DENO_CERT
url.https://github.com/.insteadof git@github.com:
url.https://github.com/.insteadof ssh://git@github.com/
placeholder setup
` {
		t.Errorf("%s%s", got, s.stderr.Bytes())
	}
	if a := h.control(&wire.Control{Id: 1, Kind: &wire.Control_Refused{Refused: &wire.Refused{Lines: []string{"no way"}}}}); a.Error != "" {
		t.Error(a.Error)
	}
	s = h.sh(`cat "$CARREL_REFUSALS"`)
	s.wantOut("no way\n")
	if e := newBeside(t, nil).setUp(&wire.Setup{Trust: []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")}); e == "" {
		t.Error("a key was taken for a certificate")
	}
}

// TestBesideBadProxy: a guest whose proxy cannot serve does not become ready.
func TestBesideBadProxy(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if r := newBeside(t, f).setUpReady(&wire.Setup{Egress: true}); !strings.Contains(r.Error, "not the loopback") {
		t.Errorf("a proxy for everybody: %v", r)
	}
}
