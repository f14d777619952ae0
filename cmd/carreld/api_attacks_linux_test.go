package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// sockets are those of a daemon with one guest, each with what it serves.
func (w *world) sockets() map[string]api.Socket {
	w.t.Helper()
	out := map[string]api.Socket{}
	es, err := os.ReadDir(filepath.Join(w.home, "run"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range es {
		p := filepath.Join(w.home, "run", e.Name())
		switch {
		case e.Name() == "d.sock":
			out[p] = api.Socket_SOCKET_DAEMON
		case strings.HasPrefix(e.Name(), "k-"):
			out[p] = api.Socket_SOCKET_KEEPER
		case strings.HasPrefix(e.Name(), "e-"):
			out[p] = api.Socket_SOCKET_EDGE
		}
	}
	if len(out) != 3 {
		w.t.Fatalf("sockets: %v", es)
	}
	return out
}

// send makes one call, and returns the status and the body.
func send(t *testing.T, socket, verb, method, kind, body string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(verb, "http://carrel"+method, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	a, err := unixClient(socket).Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", verb, method, err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

// A02, A08, A10: every method of the schema, on every socket, in every form that
// a web page or a wrong socket could send. The bodies are no JSON, so that a
// method that is reached says so and does nothing; that is the control.
func TestMethodMatrix(t *testing.T) {
	w := newRing2(t)
	w.start()
	w.guest(w.client(), "box")
	n := 0
	for socket, is := range w.sockets() {
		serves := map[string]bool{}
		for _, m := range api.Methods(is) {
			serves[m] = true
		}
		for _, m := range methods() {
			if n++; t.Failed() {
				t.FailNow() // the others would say the same
			}
			status, body := send(t, socket, http.MethodPost, m, "application/json", "[")
			// A stream's content type is another one, and one in both directions needs
			// HTTP/2: each says so, which is reached, too.
			reached := status == http.StatusBadRequest || status == http.StatusUnsupportedMediaType || status == http.StatusHTTPVersionNotSupported
			if reached != serves[m] || !serves[m] && (status != http.StatusNotImplemented || !strings.Contains(body, "there is no method")) {
				t.Errorf("%s on %v: status %d %s", m, is, status, body)
			}
			for name, c := range map[string]struct {
				verb, kind string
				header     []string
				want       int
			}{
				"GET":       {verb: http.MethodGet, want: http.StatusMethodNotAllowed},
				"text":      {verb: http.MethodPost, kind: "text/plain", want: http.StatusUnsupportedMediaType},
				"form":      {verb: http.MethodPost, kind: "application/x-www-form-urlencoded", want: http.StatusUnsupportedMediaType},
				"multipart": {verb: http.MethodPost, kind: "multipart/form-data; boundary=x", want: http.StatusUnsupportedMediaType},
				"page":      {verb: http.MethodPost, kind: "application/json", header: []string{"Origin", "https://evil.example"}, want: http.StatusForbidden},
				"null page": {verb: http.MethodPost, kind: "application/json", header: []string{"Origin", "null"}, want: http.StatusForbidden},
				"rebound":   {verb: http.MethodPost, kind: "application/json", header: []string{"Host", "evil.example"}, want: http.StatusForbidden},
				"preflight": {verb: http.MethodOptions, header: []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST"}, want: http.StatusForbidden},
				"websocket": {verb: http.MethodGet, header: []string{"Origin", "https://evil.example", "Connection", "Upgrade", "Upgrade", "websocket"}, want: http.StatusForbidden},
			} {
				status, body := send(t, socket, c.verb, m, c.kind, "{}", c.header...)
				good := status == c.want || serves[m] && status == http.StatusHTTPVersionNotSupported
				if !serves[m] && c.want != http.StatusForbidden { // not even what it would take is said
					good = status == http.StatusNotFound || status == http.StatusNotImplemented
				}
				if !good {
					t.Errorf("%s by %s on %v: status %d, not %d: %.200s", m, name, is, status, c.want, body)
				}
			}
		}
	}
	if n < 3*70 {
		t.Fatalf("%d calls", n)
	}
	if status, body := send(t, filepath.Join(w.home, "run", "d.sock"), http.MethodPost, "/carrel.v1.GuestService/List", "application/json", "{}"); status != 200 || !strings.Contains(body, `"box"`) {
		t.Errorf("control: %d %s", status, body)
	}
}

// A13: connections that only sit there, and requests that never become whole,
// keep nobody out, and cost no more than their bound.
func TestIdleConnections(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	w.guest(c, "box")
	socket := filepath.Join(w.home, "run", "d.sock")
	total := 10000
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	held := min(total, int(min(lim.Cur, 1<<20))-200) // the others were closed by the daemon before
	if held < 2*guest.MaxConns {
		t.Fatalf("this process may have only %d files open: ulimit -n", lim.Cur)
	}
	fds := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.d.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	resident := func() int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.d.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
			if f := strings.Fields(s.Text()); len(f) > 1 && f[0] == "VmRSS:" {
				n, _ := strconv.Atoi(f[1])
				return n << 10
			}
		}
		t.Fatal("no VmRSS")
		return 0
	}
	// One that is at work stays, whatever comes.
	events := make(chan *api.Event, 1024)
	go c.Events(t.Context(), client.EventOptions{Follow: true, Guest: "box"}, func(ev *api.Event) error { events <- ev; return nil })
	<-events
	before, was := resident(), fds()
	half := []string{"", "POST /carrel.v1.GuestService/List HT", "POST /carrel.v1.GuestService/List HTTP/1.1\r\nHost: carrel\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x00\xff"}
	conns := make([]net.Conn, 0, held)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	most := 0
	for i := range total {
		conn := dialFull(t, socket)
		io.WriteString(conn, half[i%len(half)]) // fails when the daemon has had enough
		if len(conns) == held {
			conns[0].Close()
			conns = conns[1:]
		}
		conns = append(conns, conn)
		if i%1000 == 999 {
			most = max(most, fds())
			// Somebody who asks gets an answer meanwhile.
			if status, _ := tryTwice(t, socket); status != 200 {
				t.Fatalf("after %d connections: status %d", i+1, status)
			}
		}
	}
	if most > was+guest.MaxConns+16 {
		t.Errorf("the daemon had %d files open, %d before", most, was)
	}
	if grown := resident() - before; grown > 128<<20 {
		t.Errorf("the daemon takes %d MiB more", grown>>20)
	}
	p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"echo", "still here"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	for ev := range events { // on the stream of before
		if ev.GetTask().GetState() == api.TaskState_TASK_STATE_EXITED {
			break
		}
	}
}

// dialFull dials a socket whose queue may be full.
func dialFull(t *testing.T, socket string) net.Conn {
	t.Helper()
	var conn net.Conn
	dial := func() bool {
		c, err := net.Dial("unix", socket)
		if err != nil && !errors.Is(err, syscall.EAGAIN) {
			t.Fatal(err)
		}
		conn = c
		return err == nil
	}
	if !dial() {
		eventually(t, "a place in the queue of "+socket, dial)
	}
	return conn
}

// tryTwice makes a call as a client of ours would: one whose connection is closed
// before it was answered makes it again.
func tryTwice(t *testing.T, socket string) (status int, err error) {
	t.Helper()
	for range 10 {
		var r *http.Response
		r, err = unixClient(socket).Post("http://carrel/carrel.v1.GuestService/List", "application/json", strings.NewReader("{}"))
		if err == nil {
			r.Body.Close()
			return r.StatusCode, nil
		}
	}
	return 0, err
}

// A13: what is larger than it may be ends before it is taken.
func TestOversized(t *testing.T) {
	w := newRing2(t)
	w.start()
	const list = "/carrel.v1.GuestService/List"
	// ask sends a request whose body, of n bytes, it goes on to write until the
	// daemon has had enough, and returns the status that it answers with.
	ask := func(n int, header string) int {
		conn, err := net.Dial("unix", filepath.Join(w.home, "run", "d.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Minute))
		go func() {
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: carrel\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n", list, header, n)
			if n == 2 {
				io.WriteString(conn, "{}")
				return
			}
			chunk := []byte(strings.Repeat(" ", 64<<10))
			for left := n; left > 0; {
				sent, err := conn.Write(chunk[:min(left, len(chunk))])
				if left -= sent; err != nil {
					return
				}
			}
		}()
		a, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		return a.StatusCode
	}
	big := func(n int) string { return "X-Big: " + strings.Repeat("x", n) + "\r\n" }
	for _, c := range []struct {
		what   string
		body   int
		header string
		want   int
	}{
		{"control", 2, "", 200},
		{"1 GiB", 1 << 30, "", http.StatusTooManyRequests}, // Connect's resource_exhausted
		{"3 MiB", 3 << 20, "", http.StatusTooManyRequests},
		{"control: a header of 60 KiB", 2, big(60 << 10), 200},
		{"a header of 80 KiB", 2, big(80 << 10), http.StatusRequestHeaderFieldsTooLarge},
		{"control, after it all", 2, "", 200},
	} {
		if got := ask(c.body, c.header); got != c.want {
			t.Errorf("%s: status %d, not %d", c.what, got, c.want)
		}
	}
}

// A11: no process of ours listens on a TCP port. The control is a port of this
// test's own, found in the same way.
func TestNoTCP(t *testing.T) {
	w := newRing2(t)
	w.start()
	w.guest(w.client(), "box")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if n := listening(t, os.Getpid()); n == 0 {
		t.Fatal("control: this test's own port was not found")
	}
	ps := w.processes()
	if len(ps) < 3 { // daemon, keeper, egress process
		t.Fatal(ps)
	}
	for _, p := range ps {
		pid, _ := strconv.Atoi(strings.Fields(p)[0])
		if n := listening(t, pid); n > 0 {
			t.Errorf("%s listens on %d TCP ports", p, n)
		}
	}
}

// listening counts the TCP ports on which a process listens.
func listening(t *testing.T, pid int) (n int) {
	t.Helper()
	inodes := map[string]bool{}
	for _, f := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, f))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" { // TCP_LISTEN
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); inodes[to] {
			n++
		}
	}
	return n
}
