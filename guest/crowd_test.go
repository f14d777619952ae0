package guest

import (
	"net"
	"net/http"
	"testing"
)

// A13: connections that are quiet make room for others, those at work do not.
func TestCrowd(t *testing.T) {
	c := &crowd{max: 3}
	var conns []net.Conn
	for range 6 {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		conns = append(conns, a)
	}
	at := func(i int, s http.ConnState) net.Conn { return c.change(conns[i], s) }
	for i := range 3 {
		if at(i, http.StateNew) != nil {
			t.Fatal("the first are closed")
		}
	}
	at(0, http.StateActive)
	if out := at(3, http.StateNew); out != conns[1] {
		t.Fatal("the one that was quiet longest stays")
	}
	if at(1, http.StateActive); len(c.all) != 3 { // it was closed as a request came
		t.Fatal(len(c.all), "connections")
	}
	at(2, http.StateActive)
	at(3, http.StateActive)
	if out := at(4, http.StateNew); out != conns[4] {
		t.Fatal("one at work was closed for a new one")
	}
	at(4, http.StateClosed)
	at(2, http.StateIdle)
	if out := at(4, http.StateNew); out != conns[2] {
		t.Fatal("an idle one stays")
	}
	for i := range 5 {
		at(i, http.StateClosed)
	}
	if len(c.all) != 0 || c.quiet.Len() != 0 {
		t.Fatal("closed connections are counted")
	}
}
