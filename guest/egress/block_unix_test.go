//go:build unix

package egress

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Whoever handed a stream over may keep it and make it one that blocks, and then
// read no more. New rules end the connection all the same, at once, and
// the others too. The control is a stream that was let be.
func TestConfigureEndsBlocked(t *testing.T) {
	for _, block := range []bool{false, true} {
		w := newWorld(t, nil, allow("a.example", 7), allow("b.example", 7))
		full := make(chan struct{})
		ended := make(chan struct{})
		w.serve("a.example", somewhere, 7, func(c net.Conn) {
			defer close(ended)
			chunk := make([]byte, 64<<10)
			for {
				c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := c.Write(chunk); isTimeout(err) { // nothing moves any more
					close(full)
					c.SetReadDeadline(time.Now().Add(patience))
					if _, err := c.Read(chunk); isTimeout(err) {
						t.Errorf("blocking %v: the server is still connected", block)
					}
					return
				} else if err != nil {
					t.Errorf("blocking %v: %v", block, err)
					return
				}
			}
		})
		w.serve("b.example", somewhere.Next(), 7, echo)
		a, b := socketPair(t)
		raw, err := b.(*net.UnixConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		kept := -1
		raw.Control(func(fd uintptr) { kept, err = syscall.Dup(int(fd)) })
		if err != nil {
			t.Fatal(err)
		}
		w.wg.Go(func() { w.Serve(context.Background(), b) })
		if block {
			if err := syscall.SetNonblock(kept, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := wire.Write(a, &wire.Open{Host: "a.example", Port: 7}); err != nil {
			t.Fatal(err)
		}
		other := w.open("b.example", 7)
		if err := says(other); err != nil {
			t.Fatal(err)
		}
		<-full
		start := time.Now()
		if n := w.configure(); n != 2 || time.Since(start) > patience {
			t.Errorf("blocking %v: %d closed in %v", block, n, time.Since(start))
		}
		if n, err := other.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("blocking %v: the other goes on", block)
		}
		<-ended
		a.SetReadDeadline(time.Now().Add(patience))
		syscall.Close(kept)
		if _, err := io.Copy(io.Discard, a); isTimeout(err) {
			t.Errorf("blocking %v: the guest's end is open", block)
		}
		a.Close()
	}
}
