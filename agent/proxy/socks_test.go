package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// hello is what a client says before its request.
func (w *world) hello(task string) string {
	u := w.env(task, "ALL_PROXY").User
	password, _ := u.Password()
	return "\x05\x02\x00\x02" + "\x01" + string(rune(len(u.Username()))) + u.Username() + string(rune(len(password))) + password
}

const helloAnswer = "\x05\x02\x01\x00"

func TestSOCKS(t *testing.T) {
	w := newWorld(t, echo)
	for name, tc := range map[string]struct{ address, host string }{
		"name": {"\x03\x0fapi.example.com", "api.example.com"},
		"IPv4": {"\x01\xc0\x00\x02\x01", "192.0.2.1"},
		"IPv6": {"\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01", "2001:db8::1"},
	} {
		got := w.say(w.hello(task) + "\x05\x01\x00" + tc.address + "\x01\xbbhello")
		if want := helloAnswer + "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00hellobye"; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		w.wantOpen(tc.host, 443, task)
	}
}

func TestSOCKSRefused(t *testing.T) {
	w := newWorld(t, echo)
	hello := w.hello(task)
	failed := func(code string) string { return helloAnswer + "\x05" + code + "\x00\x01\x00\x00\x00\x00\x00\x00" }
	for name, tc := range map[string]struct{ say, want string }{
		"no method":      {"\x05\x01\x00", "\x05\xff"},
		"no methods":     {"\x05\x00", "\x05\xff"},
		"wrong password": {"\x05\x01\x02\x01\x04task\x05wrong", "\x05\x02\x01\x01"},
		"empty password": {"\x05\x01\x02\x01\x00\x00", "\x05\x02\x01\x01"},
		"other subversion": {
			"\x05\x01\x02\x05" + hello[5:], "\x05\x02",
		},
		"bind":         {hello + "\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", failed("\x07")},
		"udp":          {hello + "\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", failed("\x07")},
		"address kind": {hello + "\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50", failed("\x08")},
		"no name":      {hello + "\x05\x01\x00\x03\x00\x00\x50", failed("\x01")},
		"NUL":          {hello + "\x05\x01\x00\x03\x03a\x00b\x00\x50", failed("\x01")},
		"port 0":       {hello + "\x05\x01\x00\x03\x01a\x00\x00", failed("\x01")},
		"cut off":      {hello + "\x05\x01\x00\x03\xff", helloAnswer},
		"other answer": {hello + "\x04\x01\x00\x03\x01a\x00\x50", helloAnswer},
	} {
		if got := w.say(tc.say); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	if got := w.say("\x04\x01\x00\x50\x7f\x00\x00\x01\x00"); strings.HasPrefix(got, "\x00") {
		t.Errorf("SOCKS 4: %q", got)
	}
	w.wantNoOpen()
	if got := w.say(hello + "\x05\x01\x00\x03\x01a\x00\x50"); !strings.HasSuffix(got, "bye") {
		t.Errorf("control: %q", got)
	}
	w.wantOpen("a", 80, task)
}

// FuzzSOCKS: no bytes make the proxy do more than answer, and none but those
// with the password open anything.
func FuzzSOCKS(f *testing.F) {
	p := &Proxy{password: strings.Repeat("a", 32)}
	f.Add([]byte("\x05\x01\x02\x01\x04task\x20" + p.password + "\x05\x01\x00\x03\x07example\x01\xbb"))
	f.Add([]byte("\x05\x01\x02\x01\x04task\x05wrong\x05\x01\x00\x01\x7f\x00\x00\x01\x01\xbb"))
	f.Add([]byte("\x05\xff"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	to, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		f.Fatal(err)
	}
	defer to.Close()
	from, err := l.Accept()
	if err != nil {
		f.Fatal(err)
	}
	defer from.Close()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, from)
	}()
	f.Cleanup(func() {
		to.Close()
		select {
		case <-drained:
		case <-time.After(patience):
			f.Error("the answers' reader goes on")
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &client{conn: to.(*net.TCPConn), r: bufio.NewReader(bytes.NewReader(b))}
		task, host, port, answer, err := p.socksAsk(c)
		if err != nil {
			if task != "" || host != "" || port != 0 || answer == socksDone {
				t.Fatalf("%q %q %d %d beside %v", task, host, port, answer, err)
			}
			return
		}
		if !bytes.Contains(b, []byte(p.password)) || port == 0 || checkHost(host) != nil || task != "" && !validTask(task) {
			t.Fatalf("%q opens %q %d as %q", b, host, port, task)
		}
	})
}

// FuzzAuthority: what passes names a host and a port that a wire.Open can hold.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:22", "[::1]", "a", ":80", "a:b", "a:0", "[:80", "a%00:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, def := range []string{"", "80"} {
			host, port, err := hostPort(s, def)
			if err == nil && (host == "" || len(host) > maxHost || port == 0 || strings.ContainsAny(host, " \r\n\x00")) {
				t.Fatalf("%q is %q %d", s, host, port)
			}
		}
	})
}
