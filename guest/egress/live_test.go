package egress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// A server that cannot be reached is no refusal, and is told as what it is.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, nil, allow("a.example", 80, 7, 22, 443), allow("nowhere.example", 7))
	w.names["a.example"] = append(w.names["a.example"], somewhere)
	c := w.open("a.example", 7)
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	ev := w.seen("end", isEnd)
	if !strings.Contains(ev.Verdict.Reason, "refused") || ev.Verdict.Action != api.EgressAction_EGRESS_ACTION_ALLOW {
		t.Errorf("%v", ev)
	}
	w.seen("connect", isAllowed)
	c = w.open("nowhere.example", 7)
	c.CloseWrite()
	w.seen("a name without addresses", func(ev *api.EgressEvent) bool {
		return isEnd(ev) && ev.Host == "nowhere.example" && strings.Contains(ev.Verdict.Reason, "no such host")
	})
	c = w.open("a.example", 22)
	b, _ := io.ReadAll(c)
	if why, err := sshDisconnect(b); err != nil || !strings.HasPrefix(why, "carrel: a.example:22 was not reached: ") {
		t.Errorf("%q, %v", why, err)
	}
	c = w.open("a.example", 80)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != http.StatusBadGateway {
		t.Errorf("%v, %v", res, err)
	}
	c = w.open("a.example", 443)
	c.Write(records(helloMessage(sni("a.example")), maxRecord))
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("%x, %v", b, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ev := range w.events {
		if isDenied(ev) {
			t.Errorf("%v", ev)
		}
	}
	if len(w.lines) == 0 || !strings.HasPrefix(w.lines[0], "carrel: a.example:7 was not reached: ") {
		t.Errorf("%q", w.lines)
	}
}

// New rules are held against requests under way, too: an answer without end
// stops when its path is no longer allowed.
func TestConfigureEndsRequests(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a.example", somewhere, 80, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		for {
			if _, err := io.WriteString(c, "data: x\n\n"); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	on := func(paths ...string) *api.EgressRule {
		return &api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "a.example", Ports: []uint32{80}, Paths: paths}
	}
	w.configure(on("/a", "/b"))
	read := map[string]*bufio.Reader{}
	for _, p := range []string{"/a", "/b"} {
		c := w.open("a.example", 80)
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.example\r\n\r\n", p)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v, %v", res, err)
		}
		read[p] = bufio.NewReader(res.Body)
		if line, err := read[p].ReadString('\n'); err != nil || line != "data: x\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	if n := w.configure(on("/b")); n != 1 {
		t.Errorf("%d connections were closed", n)
	}
	if _, err := io.Copy(io.Discard, read["/a"]); err == nil {
		t.Error("/a came to an end in order")
	}
	for range 3 {
		if _, err := read["/b"].ReadString('\n'); err != nil {
			t.Errorf("/b: %v", err)
		}
	}
	if n := w.configure(); n != 1 {
		t.Errorf("%d connections were closed", n)
	}
}

// Whatever connections are doing when rules come: once Configure has returned,
// nothing passes that the rules do not cover.
func TestConfigureRace(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a.example", somewhere, 7, echo)
	for round := range 20 {
		w.configure(allow("a.example", 7))
		var wg sync.WaitGroup
		conns := make([]net.Conn, 30)
		passed := make([]bool, len(conns))
		for i := range conns {
			conns[i] = w.open("a.example", 7)
			wg.Go(func() { passed[i] = says(conns[i]) == nil })
		}
		if round%2 == 0 {
			wg.Wait() // the control: all pass
		} else {
			time.Sleep(time.Duration(round) * 300 * time.Microsecond)
		}
		w.configure()
		for i, c := range conns {
			// What was on its way back may still be there to read; an answer to
			// what is sent now may not.
			if _, err := io.WriteString(c, "again\n"); err == nil {
				b, _ := io.ReadAll(c)
				if strings.Contains(string(b), "again") {
					t.Errorf("round %d, connection %d passes", round, i)
				}
			}
		}
		wg.Wait()
		for i := range conns {
			if round%2 == 0 && !passed[i] {
				t.Errorf("round %d: connection %d did not pass", round, i)
			}
			conns[i].Close()
		}
	}
}

// Rules that come while a connection lives are held against it.
func TestConfigureCloses(t *testing.T) {
	w := newWorld(t, nil, allow("a.example", 7), allow("b.example", 7), allow("c.example", 7))
	other := netip.MustParseAddr("93.184.215.15")
	w.serve("a.example", somewhere, 7, echo)
	w.serve("b.example", other, 7, echo)
	w.names["c.example"] = []netip.Addr{somewhere}
	open := map[string]net.Conn{}
	for _, h := range []string{"a.example", "b.example", "c.example"} {
		open[h] = w.open(h, 7)
		if err := says(open[h]); err != nil {
			t.Fatal(err)
		}
	}
	// a stays; b is denied; c would have to be inspected.
	if n := w.configure(allow("a.example", 7), allow("b.example", 7), anyRule(api.EgressAction_EGRESS_ACTION_DENY, "b.example"),
		&api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "c.example", Ports: []uint32{7}, Methods: []string{"GET"}}); n != 2 {
		t.Errorf("%d connections were closed", n)
	}
	if err := says(open["a.example"]); err != nil {
		t.Errorf("what is still allowed was closed: %v", err)
	}
	for _, h := range []string{"b.example", "c.example"} {
		if err := says(open[h]); err == nil {
			t.Errorf("%s still passes", h)
		}
		ev := w.seen("end of "+h, func(ev *api.EgressEvent) bool { return isEnd(ev) && ev.Host == h })
		if !strings.HasPrefix(ev.Verdict.Reason, "the rules have changed: ") {
			t.Errorf("%v", ev)
		}
	}
	if n := w.configure(); n != 1 {
		t.Errorf("%d connections were closed", n)
	}
	// Rules that cannot be read change nothing.
	w.configure(allow("a.example", 7))
	c := w.open("a.example", 7)
	if err := says(c); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Configure(&api.ConfigureEdgeRequest{Rules: []*api.EgressRule{allow("not a host")}}); err == nil {
		t.Error("a rule without sense was taken")
	}
	if err := says(c); err != nil {
		t.Errorf("after rules that were refused: %v", err)
	}
}
