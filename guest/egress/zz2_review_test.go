package egress

import (
"io"
"strings"
"sync"
"sync/atomic"
"testing"
"time"
"google.golang.org/protobuf/encoding/protojson"
"github.com/carrel-vm/carrel/guest/api"
	"net"

	"github.com/carrel-vm/carrel/guest/wire"
)

func writeOpen(a net.Conn, host string) error {
	return wire.Write(a, &wire.Open{Host: host, Port: 7})
}

func TestZZAudit(t *testing.T) {
	r := allow("a.example", 80)
	r.Paths = []string{"/ok"}
	r.Methods = []string{"GET"}
	var n, size atomic.Int64
	w := newWorld(t, func(o *Options) {
		o.Record = func(ev *api.EgressEvent) {
			b, _ := protojson.Marshal(ev)
			n.Add(1)
			size.Add(int64(len(b)))
		}
	}, r)
	stop := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			c := w.open("a.example", 80)
			go io.Copy(io.Discard, c)
			req := []byte("GET /" + strings.Repeat("x", 1000) + " HTTP/1.1\r\nHost: a.example\r\n\r\n")
			for time.Now().Before(stop) {
				if _, err := c.Write(req); err != nil {
					c = w.open("a.example", 80)
					go io.Copy(io.Discard, c)
				}
			}
			c.Close()
		})
	}
	wg.Wait()
	t.Logf("%d events, %d bytes in 2 s; 144 MiB in %.0f s", n.Load(), size.Load(), 144*1024*1024/(float64(size.Load())/2))
}
