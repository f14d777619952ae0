package egress

import (
	"errors"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// A published port leads into the guest, with half-close, until it is taken away.
func TestPublish(t *testing.T) {
	w := newWorld(t, nil)
	opened := make(chan uint32, 10)
	guest := make(chan net.Conn, 10)
	open := func(p uint32) (net.Conn, error) {
		if p == 81 {
			return nil, errors.New("nobody listens")
		}
		a, b := socketPair(t)
		opened <- p
		guest <- b
		return a, nil
	}
	p, err := w.Publish(t.Context(), &api.Port{GuestPort: 8080}, "", open)
	if err != nil {
		t.Fatal(err)
	}
	if p.HostAddress != "127.0.0.1" || p.HostPort == 0 || p.GuestPort != 8080 {
		t.Errorf("%v", p)
	}
	dial := func(p *api.Port) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", net.JoinHostPort(p.HostAddress, strconv.Itoa(int(p.HostPort))))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial(p)
	io.WriteString(c, "request")
	c.(*net.TCPConn).CloseWrite()
	g := <-guest
	if b, err := io.ReadAll(g); err != nil || string(b) != "request" {
		t.Errorf("%q, %v", b, err)
	}
	io.WriteString(g, "answer")
	g.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "answer" {
		t.Errorf("%q, %v", b, err)
	}
	if got := <-opened; got != 8080 {
		t.Errorf("port %d of the guest was opened", got)
	}

	// One that was asked for with a key is opened once, as long as it is open.
	keyed, err := w.Publish(t.Context(), &api.Port{GuestPort: 82}, "k", open)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.Publish(t.Context(), &api.Port{GuestPort: 82}, "k", open); err != nil || again.HostPort != keyed.HostPort {
		t.Errorf("asked again with its key: %v, %v, first %v", again, err, keyed)
	}
	if _, err := w.Publish(t.Context(), &api.Port{GuestPort: 83}, "k", open); !errors.Is(err, ErrReused) {
		t.Errorf("another port with the key: %v", err)
	}
	if other, err := w.Publish(t.Context(), &api.Port{GuestPort: 82}, "l", open); err != nil || other.HostPort == keyed.HostPort {
		t.Errorf("the control: %v %v", other, err)
	} else if err := errors.Join(w.Unpublish(keyed.HostPort), w.Unpublish(other.HostPort)); err != nil {
		t.Error(err)
	}
	dead, err := w.Publish(t.Context(), &api.Port{GuestPort: 81}, "", open)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(dial(dead)); len(b) > 0 {
		t.Errorf("%q", b)
	}
	if n := len(w.Ports()); n != 2 {
		t.Errorf("%d ports", n)
	}
	for _, bad := range []*api.Port{{}, {GuestPort: 65536}, {HostPort: 65536, GuestPort: 1}, {HostAddress: "localhost", GuestPort: 1}, {HostAddress: "127.0.0.1:1", GuestPort: 1}, {HostPort: p.HostPort, GuestPort: 1}} {
		if got, err := w.Publish(t.Context(), bad, "", open); err == nil {
			t.Errorf("%v was published as %v", bad, got)
		}
	}

	// What is open ends with its port.
	c = dial(p)
	g = <-guest
	if err := w.Unpublish(p.HostPort); err != nil {
		t.Error(err)
	}
	for _, end := range []net.Conn{c, g} {
		if n, err := end.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if _, err := net.Dial("tcp", net.JoinHostPort(p.HostAddress, strconv.Itoa(int(p.HostPort)))); err == nil {
		t.Error("somebody still listens")
	}
	if err := w.Unpublish(p.HostPort); err == nil {
		t.Error("a port was taken away twice")
	}
	c = dial(dead)
	w.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a port outlives its guest")
	}
	if _, err := w.Publish(t.Context(), &api.Port{GuestPort: 1}, "", open); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}
