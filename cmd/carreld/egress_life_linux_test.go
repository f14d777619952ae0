package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// background starts a script in the guest and returns it when it has said its
// first line.
func (s *site) background(t *testing.T, user, script string) *client.Process {
	t.Helper()
	up := make(chan struct{})
	var once sync.Once
	wrong := make(chan string, 1)
	p, err := s.c.StartTask(t.Context(), client.Task{Guest: s.guest, User: user, Args: []string{"/bin/sh", "-c", script},
		Stderr: writerFunc(func(b []byte) (int, error) {
			select {
			case wrong <- string(b):
			default:
			}
			return len(b), nil
		}),
		Stdout: writerFunc(func(b []byte) (int, error) { once.Do(func() { close(up) }); return len(b), nil })})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-up:
	case <-time.After(patience):
		p.Signal(client.SIGKILL) // the cases after this one find the guest quiet
		select {
		case w := <-wrong:
			t.Fatalf("%s: %s", script, w)
		default:
			t.Fatalf("%s: silence", script)
		}
	}
	return p
}

// P08, P09: what a guest names cannot speak to the user's terminal, nor write a
// record of its own.
func testEgressHostileNames(t *testing.T, s *site) {
	const evil = "\x1b]0;owned\x07\r\n"
	const spoof = `{\"seq\":1,\"kind\":\"spoof\"}`
	s.sh(t, `printf '`+strings.NewReplacer("\x1b", `\033`, "\x07", `\007`, "\r", `\r`, "\n", `\n`).Replace(evil)+`' > /tmp/evil
		curl -sS -m 120 "https://`+egresstest.Echo+`/%1b%5d0;owned%07%0d%0a`+spoof+`"
		curl -sS -m 120 -X "$(printf 'GE\033]0;T')" "https://`+egresstest.Echo+`/"
		curl -sS -m 120 -X SPOOF "http://`+egresstest.Second+`/x?$(cat /tmp/evil | head -c 8)"
		python3 - <<'P'
import socket, struct
# A question that no library would ask: labels of escapes, line feeds and a record.
for label in (b"\x1b]0;owned\x07", b"a\r\n{\"seq\":1}", b"\xe2\x80\xae evil", b"\x00x"):
    q = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\x07example\x03net\x00" + struct.pack(">HH", 1, 1)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(60)
    try:
        s.sendto(q, ("127.0.0.1", 53)); r = s.recv(512)
        if struct.unpack(">H", r[6:8])[0]:
            c = socket.create_connection((socket.inet_ntoa(r[-4:]), 80), 5); c.sendall(b"GET / HTTP/1.0\r\n\r\n"); c.recv(100)
    except OSError as e: print(e)
P`)
	// The task's own words.
	p, err := s.c.StartTask(t.Context(), client.Task{Guest: s.guest, Args: []string{"/bin/echo", evil + spoof}, Stdout: new(bytes.Buffer)})
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	if s.boundary == "vm" {
		// By hand, as the guest's root can: an Open whose every field is hostile.
		s.root(t, `python3 - <<'P'
import socket
def field(n, v): return bytes([n << 3 | 2, len(v)]) + v
for host in (b"\x1b]0;owned\x07.example.net", b"a\n{\"seq\":1,\"kind\":\"spoof\"}", b"x" * 250, b"\xff\xfe"):
    m = field(1, host) + bytes([2 << 3, 80]) + field(3, b"\x1b[2J\r\nspoof")
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.settimeout(60)
    try:
        s.connect((2, 65)); n = len(m); s.sendall((bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])) + m + b"GET / HTTP/1.0\r\n\r\n"); s.recv(100)
    except OSError as e: print(e)
P`)
	}
	for _, args := range [][]string{{"egress", s.guest}, {"ls"}, {"inspect", s.guest}, {"audit", "show", s.guest}} {
		text, status := s.carrel(t, args...)
		if status != 0 {
			t.Errorf("carrel %q: status %d\n%.2000s", args, status, text)
		}
		for _, bad := range []string{"\x1b", "\x07", "\r", "\u202e", "\n{\"seq\":1,\"kind\":\"spoof\""} {
			if strings.Contains(text, bad) {
				t.Errorf("carrel %q prints %q", args, bad)
			}
		}
	}
	text, _ := s.carrel(t, "egress", s.guest, "--json")
	events, spoken := 0, false
	for l := range strings.Lines(text) {
		if !json.Valid([]byte(l)) {
			t.Errorf("not a record: %q", l)
		}
		events++
		spoken = spoken || strings.Contains(l, "owned")
	}
	if events == 0 || !spoken {
		t.Errorf("control: the hostile names are not on record (%d events)", events)
	}
	if text, status := s.carrel(t, "audit", "verify", s.guest); status != 0 {
		t.Errorf("carrel audit verify: status %d\n%s", status, text)
	}
	log := s.sh(t, "cat /run/carrel/refusals.log")
	for l := range strings.Lines(log) {
		if !strings.Contains(l, "carrel") || strings.ContainsAny(l, "\x1b\x07\r") {
			t.Errorf("refusals.log: %q", l)
		}
	}
}

// Rules change while the guest runs: a closed tunnel, an opened host. How soon is
// logged: what it takes is the machine's affair, too.
func testEgressLiveRules(t *testing.T, s *site) {
	p := s.background(t, "", "curl -sSN https://"+egresstest.Slow+"/?ms=200")
	ended := make(chan time.Time, 1)
	go func() { p.Wait(); ended <- time.Now() }()
	begin := time.Now()
	if text, status := s.carrel(t, "deny", s.guest, egresstest.Slow); status != 0 {
		t.Fatalf("carrel deny: %d %s", status, text)
	}
	said := time.Since(begin)
	select {
	case at := <-ended:
		t.Logf("carrel deny answered after %v, the tunnel was closed after %v", said, at.Sub(begin))
	case <-time.After(patience):
		t.Error("the tunnel is still open")
		p.Signal(client.SIGKILL)
	}
	url := "http://" + egresstest.Attacker + "/"
	if got := s.plain(t, "get", url)[url]; !strings.Contains(got, "403") {
		t.Errorf("%s", got)
	}
	begin = time.Now()
	if text, status := s.carrel(t, "allow", s.guest, egresstest.Attacker+":80"); status != 0 {
		t.Fatalf("carrel allow: %d %s", status, text)
	}
	t.Logf("carrel allow answered after %v", time.Since(begin))
	if got := s.plain(t, "get", url)[url]; !strings.Contains(got, "this is") {
		t.Errorf("after carrel allow: %s", got)
	}
	if text, status := s.carrel(t, "deny", s.guest, egresstest.Attacker); status != 0 {
		t.Fatalf("carrel deny: %d %s", status, text)
	}
	if got := s.plain(t, "get", url)[url]; !strings.Contains(got, "403") {
		t.Errorf("after carrel deny: %s", got)
	}
	// What would happen, and why.
	if text, status := s.carrel(t, "policy", "test", s.guest, "https://"+egresstest.Attacker+"/"); status != 1 {
		t.Errorf("carrel policy test: status %d\n%s", status, text)
	}
	if text, status := s.carrel(t, "policy", "test", s.guest, "https://"+egresstest.Origin+"/"); status != 0 {
		t.Errorf("control: carrel policy test: status %d\n%s", status, text)
	}
}

// A port of the guest on the host's loopback, and nowhere else.
func testEgressPort(t *testing.T, s *site) {
	p := s.background(t, "", "cd /tmp && echo from-the-guest > page && exec python3 -u -m http.server --bind 127.0.0.1 8000")
	defer p.Signal(client.SIGKILL)
	if text, status := s.carrel(t, "port", s.guest, "18000:8000"); status != 0 {
		t.Fatalf("carrel port: %d %s", status, text)
	}
	if got := s.get(t, "http://127.0.0.1:18000/page"); got != "from-the-guest\n" {
		t.Errorf("%s", got)
	}
	if c, err := net.DialTimeout("tcp", egresstest.HostAddr+":18000", time.Second); err == nil {
		c.Close()
		t.Error("the port is open to the network")
	}
	// Inside, loopback is the guest's own.
	if got := s.sh(t, "curl -sS http://127.0.0.1:8000/page"); got != "from-the-guest\n" {
		t.Errorf("%s", got)
	}
	if text, status := s.carrel(t, "port", s.guest, "--rm", "18000"); status != 0 {
		t.Errorf("carrel port --rm: %d %s", status, text)
	}
	if c, err := net.DialTimeout("tcp", "127.0.0.1:18000", time.Second); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
}

// E28: what else carries bytes carries none past the policy: a published port
// leads in and not out, and no agent's or daemon's socket is there to be used.
func testEgressSecondPath(t *testing.T, s *site) {
	p := s.background(t, "", "cd /tmp && exec python3 -u -m http.server --bind 127.0.0.1 8001")
	defer p.Signal(client.SIGKILL)
	if text, status := s.carrel(t, "port", s.guest, "18001:8001"); status != 0 {
		t.Fatalf("carrel port: %d %s", status, text)
	}
	defer s.carrel(t, "port", s.guest, "--rm", "18001")
	for a, how := range s.plainAs(t, "root", "tcp", "host.carrel.internal:18001", egresstest.HostAddr+":18001", "10.0.2.2:18001") {
		if strings.Contains(how, "Directory listing") {
			t.Errorf("%s: %s", a, how)
		}
	}
	if r := s.sh(t, "env | grep -e SSH_AUTH_SOCK -e DBUS -e DOCKER_HOST -e GPG_AGENT; ls /run/user /run/docker.sock /var/run/docker.sock 2>/dev/null; echo looked"); r != "looked\n" {
		t.Errorf("%s", r)
	}
	s.quiet(t)
}

// E29: one guest has no way to another: not to its ports, not by its rules, not
// with its authority.
func testEgressCrossGuest(t *testing.T, s *site) {
	server := s.background(t, "root", "cd /tmp && echo of-the-box > of-the-box && exec python3 -u -m http.server --bind 0.0.0.0 8002")
	defer server.Signal(client.SIGKILL)
	if got := s.sh(t, "curl -sS http://127.0.0.1:8002/of-the-box; curl -sS http://198.18.0.1:8002/of-the-box"); got != "of-the-box\nof-the-box\n" {
		t.Errorf("control: %s", got)
	}
	own := []*api.EgressRule{{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "other.example.com", Inspect: true}}
	s.change(t, own, nil)
	defer s.change(t, nil, own)
	const url = "https://other.example.com/"
	if got := s.plain(t, "get", url)[url]; !strings.Contains(got, "this is") {
		t.Errorf("control: %s", got)
	}
	ca := s.root(t, "cat /etc/ssl/certs/ca-certificates.crt | sha256sum")
	box := s.guest
	s.other(t, func() { testOther(t, s, box, url, ca) })
}

// testOther is what the other guest tries.
func testOther(t *testing.T, s *site, box, url, ca string) {
	for a, how := range s.plainAs(t, "root", "tcp", "198.18.0.1:8002", "127.0.0.1:8002", box+":8002", box+".local:8002", box+".carrel.internal:8002", "host.carrel.internal:8002", "198.18.0.2:8002", "[::1]:8002", "[fe80::1]:8002") {
		if strings.Contains(how, "200 OK") || strings.Contains(how, "Directory") {
			t.Errorf("%s: %s", a, how)
		}
	}
	for _, cid := range []string{"2", "3", "4", "5"} {
		for p, how := range s.plainAs(t, "root", "vsock", cid, "64", "8002", "1024") {
			if strings.HasPrefix(how, "OPEN") {
				t.Errorf("vsock %s:%s: %s", cid, p, how)
			}
		}
	}
	if got := s.plain(t, "get", url)[url]; strings.Contains(got, "this is") {
		t.Errorf("the other guest's rule holds here: %s", got)
	}
	if got := s.root(t, "cat /etc/ssl/certs/ca-certificates.crt | sha256sum"); got == ca {
		t.Error("two guests trust one authority")
	}
	if got := s.sh(t, "env | grep -e ANTHROPIC -e GITHUB_TOKEN; echo looked"); got != "looked\n" {
		t.Errorf("the other guest's secrets are announced here: %s", got)
	}
	if got := s.sh(t, "curl -sS -m 120 https://api.anthropic.com/v1/models"); strings.Contains(got, "claude-test") {
		t.Errorf("the other guest's secret works here: %s", got)
	}
}

// E34: connections without end are bounded, and hurt only their own guest.
func testEgressFlood(t *testing.T, s *site) {
	n := scaled(2000, 20000)
	if s.boundary == "vm" {
		n = scaled(1300, 20000) // an emulated machine opens a hundred a second
	}
	edge, keeper := s.edge(t, s.guest), s.keeper(t)
	files := func(pid int) int {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := files(edge) + files(keeper)
	p := s.background(t, "", fmt.Sprintf("rm -f /tmp/flood; mkfifo /tmp/flood; /tools/plain hold %s:8080 %d < /tmp/flood & exec 3> /tmp/flood; wait", egresstest.Origin, n))
	// What the guest holds is connected beyond it in the egress process's own time.
	eventually(t, "a hundred connections have come to the origin", func() bool { return s.net.Host(egresstest.Origin).Connections() >= 100 })
	during := files(edge) + files(keeper)
	t.Logf("%d files are open, %d before; the origin has %d connections", during, before, s.net.Host(egresstest.Origin).Connections())
	if during-before > 6*1024+64 || during == before {
		t.Errorf("%d files are open, %d before", during, before)
	}
	if c := s.net.Host(egresstest.Origin).Connections(); c > 1024+64 {
		t.Errorf("the origin has %d connections", c)
	}
	var rss int
	for _, l := range strings.Split(read(t, fmt.Sprintf("/proc/%d/status", edge)), "\n") {
		fmt.Sscanf(l, "VmRSS: %d kB", &rss)
	}
	t.Logf("the egress process holds %d MiB", rss>>10)
	if rss == 0 || rss > 512<<10 {
		t.Errorf("the egress process holds %d kB", rss)
	}
	// Another guest is as it was.
	s.other(t, func() {
		begin := time.Now()
		if got := s.plain(t, "get", "https://"+egresstest.Origin+"/")["https://"+egresstest.Origin+"/"]; !strings.Contains(got, "this is") {
			t.Errorf("another guest during the flood: %s", got)
		}
		t.Logf("another guest's request took %v", time.Since(begin))
	})
	p.Signal(client.SIGKILL)
	p.Wait()
	eventually(t, "the connections are gone", func() bool { return files(edge)+files(keeper) <= before+16 })
	if got := s.plain(t, "get", "https://"+egresstest.Origin+"/")["https://"+egresstest.Origin+"/"]; !strings.Contains(got, "this is") {
		t.Errorf("after the flood: %s", got)
	}
}

// E24, F06: the daemon is killed. Nothing changes while it is gone, nor when the
// next has taken over; a rule of before still holds, and new ones can be made.
func testEgressDaemonKilled(t *testing.T, s *site) {
	const kept = "other.example.com"
	if text, status := s.carrel(t, "allow", s.guest, kept); status != 0 {
		t.Fatalf("carrel allow: %d %s", status, text)
	}
	same := func(when string) {
		t.Helper()
		s.net.Reset()
		for url, want := range map[string]string{
			"https://" + egresstest.Origin + "/": "this is", "https://" + egresstest.Second + "/": "this is", "https://" + kept + "/": "this is",
			"https://" + egresstest.Attacker + "/": "access denied", "http://" + egresstest.Attacker + "/": "403",
		} {
			if got := s.plain(t, "get", url)[url]; !strings.Contains(got, want) {
				t.Errorf("%s: %s: %s", when, url, got)
			}
		}
		s.quiet(t, egresstest.Origin, egresstest.Second, kept)
	}
	same("before")
	edge := s.edge(t, s.guest)
	p := s.background(t, "", "curl -sS http://"+egresstest.Origin+"/ ; while :; do sleep 0.2; curl -s -o /dev/null -m 5 http://"+egresstest.Attacker+"/; curl -s -o /dev/null -m 5 http://"+egresstest.Inner+"/; curl -s -m 5 http://"+egresstest.HostAddr+":"+s.net.Canary.Port+"/; done")
	s.kill()
	s.net.Reset()
	// What runs on while nobody is there to ask.
	eventually(t, "the task was refused without a daemon", func() bool { return s.refusedInAudit(t) })
	s.quiet(t, egresstest.Origin) // its first request may come late
	s.start()
	s.quiet(t, egresstest.Origin)
	// The task's stream ended with the daemon: its client starts none.
	q, err := s.c.Attach(t.Context(), s.guest, p.ID, client.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Signal(client.SIGKILL); err != nil {
		t.Errorf("the task that ran on: %v", err)
	}
	q.Wait()
	p.Wait()
	if got := s.edge(t, s.guest); got != edge {
		t.Errorf("the egress process is %d, was %d", got, edge)
	}
	same("after")
	for _, c := range few(s, 3, []egressCase{
		{"MagicAddresses", testEgressMagicAddresses}, {"OnlyTCP", testEgressOnlyTCP}, {"DNSTunnel", testEgressDNSTunnel},
		{"ControlAPI", testEgressControlAPI}, {"FilesAPI", testEgressFilesAPI},
	}) {
		t.Run(c.name, func(t *testing.T) { s.net.Reset(); c.f(t, s) })
	}
	if text, status := s.carrel(t, "deny", s.guest, kept); status != 0 {
		t.Fatalf("carrel deny: %d %s", status, text)
	}
	if got := s.plain(t, "get", "http://"+kept+"/")["http://"+kept+"/"]; strings.Contains(got, "this is") {
		t.Errorf("the next daemon's rule does not hold: %s", got)
	}
}

// refusedInAudit says whether the guest's audit log grows while no daemon runs.
func (s *site) refusedInAudit(t *testing.T) bool {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(s.home, "state", "guests", s.guest, "audit", "*"))
	var n int64
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			n += fi.Size()
		}
	}
	grown := s.audited != 0 && n > s.audited
	if s.audited == 0 {
		s.audited = n
	}
	return grown
}

// The same policy after a stop and a start, rules that were made meanwhile
// included.
func testEgressStopStart(t *testing.T, s *site) {
	if text, status := s.carrel(t, "allow", s.guest, "other.example.com:80"); status != 0 {
		t.Fatalf("carrel allow: %d %s", status, text)
	}
	if text, status := s.carrel(t, "deny", s.guest, egresstest.Slow); status != 0 {
		t.Fatalf("carrel deny: %d %s", status, text)
	}
	if text, status := s.carrel(t, "port", s.guest, "18002:8000"); status != 0 {
		t.Fatalf("carrel port: %d %s", status, text)
	}
	if _, err := s.c.StopGuest(t.Context(), s.guest, time.Second); err != nil {
		t.Fatal(err)
	}
	if c, err := net.DialTimeout("tcp", "127.0.0.1:18002", time.Second); err == nil {
		c.Close()
		t.Error("the guest's port outlives it")
	}
	if _, err := s.c.StartGuest(t.Context(), &api.GuestSpec{Name: s.guest}, client.GuestOptions{}); err != nil {
		t.Fatal(err)
	}
	s.net.Reset()
	for url, want := range map[string]string{
		"https://" + egresstest.Origin + "/": "this is", "http://" + egresstest.Attacker + "/": "403", "https://" + egresstest.Slow + "/?ms=1": "access denied",
	} {
		if got := s.plain(t, "get", url)[url]; !strings.Contains(got, want) {
			t.Errorf("%s: %s", url, got)
		}
	}
	if got := s.sh(t, "curl -sS https://api.anthropic.com/v1/models"); !strings.Contains(got, "claude-test") {
		t.Errorf("the secret does not work any more: %s", got)
	}
	// A policy file that cannot be read stops the next start.
	file := filepath.Join(s.home, "config", "policy.yaml")
	good := read(t, file)
	write(t, file, good+"\nnonsense: [\n")
	defer write(t, file, good)
	_, err := s.c.StartGuest(t.Context(), &api.GuestSpec{Name: "never", Boundary: s.boundary}, client.GuestOptions{})
	if err == nil || !strings.Contains(err.Error(), "policy.yaml") {
		t.Errorf("E01: a guest starts with an unreadable policy: %v", err)
	}
}

// The egress process is killed: the guest goes on, reaches nothing, and that is
// said; a stop and a start mend it.
func testEgressKilled(t *testing.T, s *site) {
	if err := killOne(s.edge(t, s.guest), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.net.Reset()
	url := "http://" + egresstest.Origin + "/"
	if got := s.plain(t, "get", url)[url]; strings.Contains(got, "this is") {
		t.Errorf("%s", got)
	}
	s.quiet(t)
	if f := s.net.Tap.Beyond(); len(f) > 0 {
		t.Errorf("packets left: %v", f)
	}
	if got := s.sh(t, "echo alive"); got != "alive\n" {
		t.Errorf("%s", got)
	}
	eventually(t, "the guest is said to reach nothing", func() bool {
		g, err := s.c.Guest(t.Context(), s.guest)
		return err == nil && strings.Contains(g.Steering, "none")
	})
	if _, err := s.c.StopGuest(t.Context(), s.guest, time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.c.StartGuest(t.Context(), &api.GuestSpec{Name: s.guest}, client.GuestOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.plain(t, "get", url)[url]; !strings.Contains(got, "this is") {
		t.Errorf("after a stop and a start: %s", got)
	}
	// And the keeper's end is the end of both.
	pid := s.edge(t, s.guest)
	if err := killOne(s.keeper(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the egress process ended with its keeper", func() bool { return killOne(pid, 0) == syscall.ESRCH })
	http.DefaultClient.CloseIdleConnections()
}
