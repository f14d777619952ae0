package egresstest

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Request is one request that reached a server of the world.
type Request struct {
	Method, Host, URI, Proto string
	// SNI is what the TLS handshake asked for; empty in clear text.
	SNI    string
	Header http.Header
	// Body is what the handler has read of it, at most 64 KiB.
	Body []byte
}

// Host is a server of the world. It records what reaches its addresses, whatever
// that says of itself.
type Host struct {
	// Name is its first name; Addrs are its addresses.
	Name  string
	Addrs []string
	names []string
	// expired, foreign: its certificate has run out, or is of an authority
	// that nobody knows.
	expired, foreign bool
	handler          http.Handler

	mu       sync.Mutex
	requests []*Request
	conns    int
}

// Requests are all that came since the last Reset.
func (h *Host) Requests() (all []Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.requests {
		all = append(all, *r)
	}
	return all
}

// Connections says how many were accepted since the last Reset, on any port.
func (h *Host) Connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conns
}

// Saw says whether s stood in any request line, header or body that came, up to
// the 64 KiB that are kept of each body.
func (h *Host) Saw(s string) bool {
	for _, r := range h.Requests() {
		if strings.Contains(r.URI, s) || strings.Contains(r.Host, s) || bytes.Contains(r.Body, []byte(s)) {
			return true
		}
		for n, vs := range r.Header {
			if strings.Contains(n+": "+strings.Join(vs, "\n"), s) {
				return true
			}
		}
	}
	return false
}

// Reset forgets requests and connections.
func (h *Host) Reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests, h.conns = nil, 0
}

func (h *Host) connected() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns++
}

func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &Request{Method: r.Method, Host: r.Host, URI: r.RequestURI, Proto: r.Proto, Header: r.Header.Clone()}
	if r.TLS != nil {
		rec.SNI = r.TLS.ServerName
	}
	h.mu.Lock()
	h.requests = append(h.requests, rec)
	h.mu.Unlock()
	r.Body = &recorded{ReadCloser: r.Body, h: h, rec: rec}
	h.handler.ServeHTTP(w, r)
}

// recorded notes a body as its handler reads it.
type recorded struct {
	io.ReadCloser
	h   *Host
	rec *Request
}

func (b *recorded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	b.rec.Body = append(b.rec.Body, p[:min(n, 64<<10-len(b.rec.Body))]...)
	return n, err
}

// certificate answers a handshake with the host's own certificate, whatever was
// asked for.
func (h *Host) certificate(a, foreign *Authority) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		end := a.cert.NotAfter
		if h.expired {
			end = a.cert.NotBefore.Add(time.Hour)
		}
		if h.foreign {
			a = foreign
		}
		return a.Leaf(end, append(append([]string(nil), h.names...), h.Addrs...)...)
	}
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
