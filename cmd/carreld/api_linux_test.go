package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// probeSocket names the socket that a copy of this test, running as another
// user, tries every method on.
const probeSocket = "CARREL_TEST_PROBE_SOCKET"

// methods are all methods of the API, from its schema: a new one is tried
// without a word here.
func methods() (all []string) {
	svcs := api.File_carrel_v1_carrel_proto.Services()
	for i := range svcs.Len() {
		ms := svcs.Get(i).Methods()
		for j := range ms.Len() {
			all = append(all, "/"+string(svcs.Get(i).FullName())+"/"+string(ms.Get(j).Name()))
		}
	}
	return all
}

func unixClient(socket string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// isShelf says whether a keeper takes descriptors on the socket, and no calls.
func isShelf(socket string) bool { return strings.HasPrefix(filepath.Base(socket), "s-") }

// probe prints a line for each method: what came back.
func probe(socket string) {
	if isShelf(socket) {
		probeShelf(socket)
		return
	}
	for _, m := range methods() {
		// Not JSON, so that an answer does nothing.
		r, err := unixClient(socket).Post("http://carrel"+m, "application/json", strings.NewReader("["))
		if err != nil {
			fmt.Println(m, "refused", err)
			continue
		}
		r.Body.Close()
		fmt.Println(m, "answered", r.Status)
	}
}

// probeShelf hands nothing over, to which the keeper's user has an answer.
func probeShelf(socket string) {
	c, err := net.DialTimeout("unixpacket", socket, patience)
	if err != nil {
		fmt.Println("refused", err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte("{}")) // an error shows in the read
	b := make([]byte, 4096)
	if n, err := c.Read(b); err != nil || n == 0 {
		fmt.Println("refused", err)
		return
	}
	fmt.Println("answered")
}

// A01, A02: another user of the machine gets an answer from no method of the
// daemon or of a keeper: the files' modes keep them out, and where those were
// opened by mistake, the check of who is at the other end does.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test becomes another user, for which it must run as root")
	}
	w := newRing2(t)
	w.start()
	c := w.client()
	w.guest(c, "box")
	run := filepath.Join(w.home, "run")
	es, err := os.ReadDir(run)
	if err != nil {
		t.Fatal(err)
	}
	var sockets []string
	for _, e := range es {
		if e.Type()&fs.ModeSocket != 0 {
			sockets = append(sockets, filepath.Join(run, e.Name()))
		}
	}
	if len(sockets) != 4 { // the daemon, the keeper and where it takes descriptors, the egress process
		t.Fatalf("sockets: %q", sockets)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test's own file must be within the other user's reach.
	self := filepath.Join(os.TempDir(), filepath.Base(w.bin)+".probe")
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, b, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(self)
	try := func(uid uint32, socket string) string {
		cmd := exec.Command(self)
		cmd.Dir = "/"
		cmd.Env = []string{probeSocket + "=" + socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	for _, open := range []bool{false, true} {
		if open {
			for _, d := range []string{filepath.Dir(w.home), w.home, run} {
				if err := os.Chmod(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, s := range sockets {
			if open {
				if err := os.Chmod(s, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			want := len(methods())
			if isShelf(s) {
				want = 1
			}
			out := try(65534, s)
			if strings.Contains(out, "answered") || strings.Count(out, "refused") != want {
				t.Errorf("opened %v, socket %s: another user was answered:\n%s", open, filepath.Base(s), out)
			}
			// The control: the very same from this user.
			if out := try(0, s); strings.Count(out, "answered") != want {
				t.Errorf("control: this user was refused:\n%s", out)
			}
		}
	}
	for _, d := range []string{run, w.home} {
		if err := os.Chmod(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// A06: whatever the umask, nothing of ours can be read by others.
func TestUmask(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	w := newRing2(t)
	w.start()
	c := w.client()
	w.guest(c, "box")
	n := 0
	err := filepath.WalkDir(w.home, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == w.home || filepath.Base(p) == "daemon.log" { // made by the test
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if n++; fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		return nil
	})
	if err != nil || n < 10 {
		t.Fatal(n, err)
	}
}

// A13, A08: garbage, half requests, huge bodies and requests from web pages are
// refused, and the daemon lives.
func TestGarbage(t *testing.T) {
	w := newRing2(t)
	w.start()
	socket := filepath.Join(w.home, "run", "d.sock")
	for _, g := range []string{"\x00\x01\x02", "GET / HTTP/1.1\r\n", "POST /carrel.v1.GuestService/List HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{", strings.Repeat("A", 1<<20), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(g)) // fails when the daemon has had enough
		c.Close()
	}
	idle := make([]net.Conn, 500)
	for i := range idle {
		var err error
		if idle[i], err = net.Dial("unix", socket); err != nil {
			t.Fatal(err)
		}
		defer idle[i].Close()
	}
	post := func(method, kind string, body io.Reader, header ...string) int {
		t.Helper()
		r, err := http.NewRequest(http.MethodPost, "http://carrel"+method, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", kind)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		a, err := unixClient(socket).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		return a.StatusCode
	}
	const list = "/carrel.v1.GuestService/List"
	for name, code := range map[string]int{
		"not JSON":     post(list, "application/json", strings.NewReader("{{{")),
		"deep":         post(list, "application/json", strings.NewReader(strings.Repeat(`{"a":`, 100000))),
		"large":        post(list, "application/json", bytes.NewReader(make([]byte, 8<<20))),
		"form":         post(list, "application/x-www-form-urlencoded", strings.NewReader("a=b")),
		"text":         post(list, "text/plain", strings.NewReader("{}")),
		"web page":     post(list, "application/json", strings.NewReader("{}"), "Origin", "https://evil.example"),
		"null page":    post(list, "application/json", strings.NewReader("{}"), "Origin", "null"),
		"no such rule": post("/carrel.v1.GuestService/Nothing", "application/json", strings.NewReader("{}")),
	} {
		if code < 400 || code >= 500 && code != http.StatusNotImplemented {
			t.Errorf("%s: status %d", name, code)
		}
	}
	if code := post(list, "application/json", strings.NewReader("{}")); code != 200 {
		t.Errorf("control: status %d", code)
	}
}

// What the caller has left open stays with the caller: neither the daemon nor a
// keeper holds it. The control is the descriptor itself, which the child got.
func TestInheritsNothing(t *testing.T) {
	w := newRing2(t)
	secret := filepath.Join(w.work, "secret")
	write(t, secret, "x")
	cmd := exec.Command("/bin/sh", "-c", "exec 9<"+secret+"; readlink /proc/self/fd/9; exec "+filepath.Join(w.bin, "carrel")+" start --no-share box")
	cmd.Env = append(os.Environ(), "CARREL_HOME="+w.home, "CARREL_CACHE=")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), secret) {
		t.Fatalf("%v %s", err, out)
	}
	n := 0
	for _, p := range w.processes() {
		pid, _, _ := strings.Cut(p, " ")
		fds, _ := filepath.Glob("/proc/" + pid + "/fd/*")
		for _, fd := range fds {
			n++
			if what, _ := os.Readlink(fd); what == secret {
				t.Errorf("%s holds the caller's file", p)
			}
		}
	}
	if n < 10 {
		t.Fatalf("only %d descriptors were looked at", n)
	}
}

// A keeper holds no descriptor for a task that has ended.
func TestEndedTasksHoldNothing(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	g := w.guest(c, "box")
	count := func() int {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", g.KeeperPid))
		return len(fds)
	}
	run := func(n int) {
		for range n {
			p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"echo", "x"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(5)
	before := count()
	run(40)
	eventually(t, "what the tasks had open is closed", func() bool { return count() <= before+10 }) // it may come after their ends are told
}
