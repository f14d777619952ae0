//go:build bench

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

const (
	// originHost is what the server is called on the host's side of every leg. It
	// is an address, so that nobody has to look it up.
	originHost = "127.0.0.1"
	// smallBytes is the answer to a request that is about the connection.
	smallBytes = 1
	// idleConns is how many connections a process's memory is divided by.
	idleConns = 1000
)

// The two ways through egress: bytes pass, or TLS is terminated and requests are
// judged.
const (
	passed    = "passed"
	inspected = "inspected"
)

var ways = []string{passed, inspected}

// benchOrigin is one web server over TLS on the host's loopback, at two ports of
// which one is passed through and one inspected.
type benchOrigin struct {
	ca    *egresstest.Authority
	roots string // a file with the authority's certificate
	ports map[string]uint32
}

// egress measures the way out: the host's part of it alone, beside srt's proxy,
// and the whole of it from a guest, each beside a direct connection.
func (b *bench) egress() {
	o := b.origin()
	b.leg(o)
	b.idleMemory(o)
	b.wholePaths(o)
}

// origin starts the server. GET /N is answered with N bytes.
func (b *bench) origin() *benchOrigin {
	o := &benchOrigin{ca: egresstest.NewAuthority(b), roots: filepath.Join(b.TempDir(), "roots.pem"), ports: map[string]uint32{}}
	if err := os.WriteFile(o.roots, o.ca.PEM, 0o644); err != nil {
		b.Fatal(err)
	}
	leaf, err := o.ca.Leaf(time.Now().Add(24*time.Hour), hostInternal, originHost)
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 64<<10)
	s := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{*leaf}},
		// HTTP/1.1 alone, so that all sides speak the same.
		Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := strconv.ParseInt(r.URL.Path[1:], 10, 64)
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Length", r.URL.Path[1:])
			for ; n > 0 && err == nil; n -= int64(len(block)) {
				_, err = w.Write(block[:min(n, int64(len(block)))])
			}
		}),
	}
	s.Protocols.SetHTTP1(true)
	b.Cleanup(func() { s.Close() })
	for _, way := range ways {
		ln, err := net.Listen("tcp", originHost+":0")
		if err != nil {
			b.Fatal(err)
		}
		o.ports[way] = uint32(ln.Addr().(*net.TCPAddr).Port)
		go s.ServeTLS(ln, "", "")
	}
	return o
}

// rules let a host of that name out to the origin, each port in its way.
func (o *benchOrigin) rules(host string) (rs []*api.EgressRule) {
	for _, way := range ways {
		rs = append(rs, &api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: host,
			Ports: []uint32{o.ports[way]}, Inspect: way == inspected, Origin: "make bench"})
	}
	return rs
}

// side is one of those that are compared: a way to the origin and by whom the
// certificate that is seen there was made.
type side struct {
	name string
	// host is the origin, with the port that leads this way.
	host  string
	dial  func(ctx context.Context) (net.Conn, error)
	roots *x509.CertPool
	// again is how often it is asked anew, in a turn, where it fails: srt's proxy has
	// closed connections before the last bytes were through.
	again int
}

func (o *benchOrigin) host(way string) string {
	return net.JoinHostPort(originHost, fmt.Sprint(o.ports[way]))
}

func (o *benchOrigin) direct() side {
	at := o.host(passed)
	return side{"direct", at, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", at)
	}, o.ca.Pool(), 0}
}

// get makes one connection for one request over HTTP/1.1 and returns how long it
// took in milliseconds: connection, TLS, and the answer to its end.
func (b *bench) get(s side, size int64) float64 {
	b.Helper()
	for try := 0; ; try++ {
		took, err := b.getOnce(s, size)
		if err == nil {
			return took
		}
		if try == s.again {
			b.Fatalf("%s: %v", s.name, err)
		}
		b.Logf("%s is asked again: %v", s.name, err)
	}
}

func (b *bench) getOnce(s side, size int64) (took float64, err error) {
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	t := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) },
		TLSClientConfig:   &tls.Config{RootCAs: s.roots},
		DisableKeepAlives: true, DisableCompression: true,
	}
	begin := time.Now()
	r, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("https://%s/%d", s.host, size), nil)
	if err != nil {
		return 0, err
	}
	res, err := t.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, res.Body, make([]byte, 64<<10))
	if err != nil || res.StatusCode != http.StatusOK || n != size {
		return 0, fmt.Errorf("status %d, %d bytes of %d: %v", res.StatusCode, n, size, err)
	}
	return ms(time.Since(begin)), nil
}

// speed is that of some bytes, in MiB/s.
func speed(ms float64, bytes int) float64 { return float64(bytes) / (1 << 20) / (ms / 1000) }

// leg compares the host's part: a stream handed to an egress process, as its
// keeper does, with a CONNECT to srt's proxy.
func (b *bench) leg(o *benchOrigin) {
	ours, srt := b.edge(o), b.srt()
	sides := []side{o.direct()}
	for _, way := range ways {
		sides = append(sides, ours.side(o, way), b.startProxy(srt, o, way).side(o, way))
	}
	measure := func(n int, size int64, of func(ms float64) float64) map[string][]float64 {
		var fs []func() float64
		for _, s := range sides {
			fs = append(fs, func() float64 { return of(b.get(s, size)) })
		}
		out := map[string][]float64{}
		for i, values := range b.rounds(n, fs...) {
			out[sides[i].name] = values
		}
		return out
	}
	what := map[string]string{passed: "passed through", inspected: "TLS terminated, the request judged"}

	x := measure(20*b.n, smallBytes, func(ms float64) float64 { return ms })
	const setup = "a connection, its TLS handshake and one small request"
	b.latency("direct_setup", "ms", x["direct"], limit{}, setup+"; from the host, direct to a server on its loopback")
	for _, way := range ways {
		leg, peer := x["leg_"+way], x["srt_"+way]
		b.latency("leg_setup_"+way, "ms", leg, limit{}, "the same through an egress process, as its keeper hands it a stream; "+what[way])
		b.latency("srt_setup_"+way, "ms", peer, limit{}, "the same through srt's proxy ("+srt.version+"), by CONNECT; "+what[way])
		b.ratio("leg_over_direct_setup_"+way, "direct_setup", leg, x["direct"], limit{}, "of one round each")
		b.ratio("leg_over_srt_setup_"+way, "srt_setup_"+way, leg, peer, most(1), "of one round each")
	}
	x = measure(b.n, bulkBytes, func(ms float64) float64 { return speed(ms, bulkBytes) })
	b.median("direct_down", "MiB/s", x["direct"], limit{}, "64 MiB from the server over TLS (HTTP/1.1), connection included; from the host, direct")
	for _, way := range ways {
		leg, peer := x["leg_"+way], x["srt_"+way]
		b.median("leg_down_"+way, "MiB/s", leg, limit{}, "the same through an egress process; "+what[way])
		b.median("srt_down_"+way, "MiB/s", peer, limit{}, "the same through srt's proxy; "+what[way])
		b.ratio("leg_over_direct_down_"+way, "direct_down", leg, x["direct"], limit{}, "of one round each, in speed")
		b.ratio("leg_over_srt_down_"+way, "srt_down_"+way, leg, peer, least(1), "of one round each, in speed")
	}
}

// idleMemory divides what a process gains by idle connections, each of which has
// answered one request and stays. The processes are fresh ones.
func (b *bench) idleMemory(o *benchOrigin) {
	for _, way := range ways {
		ours, srt := b.edge(o), b.startProxy(b.srt(), o, way)
		for _, p := range []struct {
			name, how string
			side      side
			pid       int
		}{
			{"leg_memory_" + way, "an egress process", ours.side(o, way), ours.pid},
			{"srt_memory_" + way, "srt's proxy", srt.side(o, way), srt.pid},
		} {
			for range 10 { // what every process allocates once
				b.get(p.side, smallBytes)
			}
			before := b.memoryOf(p.pid).own()
			if p.side.name == "leg_"+way && way == passed {
				b.add(figure{Name: "leg_memory", Value: before, Unit: "MB", N: 1, How: "an egress process after ten connections, none open"}, limit{})
			}
			hold := b.hold(p.side, idleConns)
			after := b.memoryOf(p.pid).own()
			hold()
			b.add(figure{Name: p.name, Value: (after - before) * 1000 / idleConns, Unit: "MB per 1,000", N: 1,
				How: fmt.Sprintf("what %s gains by %d idle connections, %s, each after one request", p.how, idleConns, way)}, limit{})
		}
	}
}

// hold opens n connections that have answered one request, and returns what
// closes them.
func (b *bench) hold(s side, n int) (closeAll func()) {
	b.Helper()
	conns := make([]net.Conn, n)
	errs := make([]error, 16)
	var all sync.WaitGroup
	for worker := range errs {
		all.Go(func() {
			for i := worker; i < n && errs[worker] == nil; i += len(errs) {
				conns[i], errs[worker] = b.open(s)
			}
		})
	}
	all.Wait()
	closeAll = func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		closeAll()
		b.Fatalf("%s: %v", s.name, err)
	}
	return closeAll
}

// open makes one connection, has one small request answered on it, and leaves
// it open.
func (b *bench) open(s side) (net.Conn, error) {
	raw, err := s.dial(b.Context())
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, &tls.Config{RootCAs: s.roots, ServerName: originHost})
	c.SetDeadline(time.Now().Add(patience))
	_, err = fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n", smallBytes, s.host)
	if err == nil {
		var res *http.Response
		if res, err = http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			_, err = io.Copy(io.Discard, res.Body)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
