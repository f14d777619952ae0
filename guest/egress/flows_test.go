package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// R12: a million connections, one after the other, each to a name that was not
// seen before, half of them refused, leave nothing behind: no table of flows, of
// names or of refusals grows with them. The clock is the test's own, so that the
// bound on how fast they come costs no time.
func TestManyFlows(t *testing.T) {
	n := 5_000
	if os.Getenv("CARREL_SCALE") == "full" {
		n = 1_000_000
	}
	if testing.Short() {
		n = 2_000
	}
	synctest.Test(t, func(t *testing.T) {
		var passed, denied atomic.Int64
		w := newWorld(t, func(o *Options) {
			pipes(func(c net.Conn) { io.Copy(c, c) })(o)
			o.Record = func(ev *api.EgressEvent) { // and keeps none, as the audit log on disk would
				switch {
				case isDenied(ev):
					denied.Add(1)
				case isEnd(ev):
					passed.Add(1)
				}
			}
			o.Refused = func(_, _ string) {}
		}, allow("*.a.example", 7))
		flow := func(i int) {
			a, b := net.Pipe()
			served := make(chan struct{})
			go func() { defer close(served); w.Serve(context.Background(), b) }()
			host := fmt.Sprintf("n%d.a.example", i)
			if i%2 == 1 {
				host = fmt.Sprintf("n%d.denied.example", i)
			}
			if err := wire.Write(a, &wire.Open{Host: host, Port: 7}); err != nil {
				t.Fatal(err)
			}
			if err := says(a); (err == nil) != (i%2 == 0) {
				t.Fatalf("flow %d to %s: %v", i, host, err)
			}
			a.Close()
			<-served
		}
		held := func() (bytes uint64, goroutines int) {
			time.Sleep(2 * idleLimit) // a pipe's deadlines are kept until they are past, closed or not
			synctest.Wait()
			runtime.GC()
			runtime.GC() // pools are given up at the second
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc, runtime.NumGoroutine()
		}
		for i := range 2000 { // fills what is kept of the last ones
			flow(i)
		}
		before, running := held()
		for i := range n {
			flow(2000 + i)
		}
		after, still := held()
		t.Logf("%d connections: heap %d KiB before and %d KiB after, %d goroutines and %d", n, before>>10, after>>10, running, still)
		if after > before+4<<20 { // 4 bytes a flow, of a million
			t.Errorf("%d connections left %d KiB", n, (after-before)>>10)
		}
		if still > running {
			t.Errorf("%d goroutines before, %d after", running, still)
		}
		if passed.Load() == 0 || denied.Load() == 0 {
			t.Errorf("%d passed, %d were refused: nothing was tested", passed.Load(), denied.Load())
		}
		w.Close()
	})
}
