package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// errForbidden marks a request that was not sent.
var errForbidden = errors.New("not sent")

// endless marks a request whose answer may be long.
type endless struct{}

// maxAnswer bounds every answer but a blob's, also those that the library reads for us (bytes).
const maxAnswer = maxManifest + 1<<10

// guarded lies under the library: every request goes through it, with the library's own and those of redirects.
type guarded struct {
	next     http.RoundTripper
	registry string
	plain    bool
}

func (g *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	switch {
	case req.URL.Scheme == "https":
	case req.URL.Scheme != "http":
		return nil, fmt.Errorf("%w to a URL of scheme %q", errForbidden, req.URL.Scheme)
	case !g.plain:
		return nil, fmt.Errorf("%w without TLS to %s (a registry on this host may be allowed plain HTTP)", errForbidden, req.URL.Host)
	case req.URL.Host != g.registry || !loopback(req.URL.Hostname()):
		return nil, fmt.Errorf("%w without TLS to %s: plain HTTP is for a registry on this host's loopback only", errForbidden, req.URL.Host)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := g.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	b := &body{r: resp.Body, cancel: cancel}
	b.timer = time.AfterFunc(stall, func() { cancel(fmt.Errorf("%w: not a byte for %v", errTemporary, stall)) })
	if req.Context().Value(endless{}) == nil || resp.StatusCode >= 300 {
		b.left, b.limited = maxAnswer, true
	}
	resp.Body = b
	return resp, nil
}

// body ends an answer that stalls, or that is longer than anyone needs.
type body struct {
	r       io.ReadCloser
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	once    sync.Once
	limited bool
	left    int64
}

func (b *body) Read(p []byte) (int, error) {
	if b.limited {
		if b.left <= 0 {
			return 0, fmt.Errorf("%w: an answer of more than %d bytes", ErrTooBig, maxAnswer)
		}
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	b.timer.Reset(stall)
	return n, err
}

func (b *body) Close() error {
	b.once.Do(func() { b.timer.Stop(); b.cancel(nil) })
	return b.r.Close()
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// notPublic are the ranges that Go's own predicates do not name.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // RFC 6598, and some clouds' metadata
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"), // NAT64 would lead to any of the above
	netip.MustParsePrefix("2002::/16"),
}

// publicOnly is a dialer's Control: it sees the address that is about to be dialled.
func publicOnly(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w to %q", errForbidden, address)
	}
	ip := at.Addr().Unmap().WithZone("")
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return fmt.Errorf("%w to %s: the registry may send us to other hosts at public addresses only", errForbidden, net.JoinHostPort(ip.String(), fmt.Sprint(at.Port())))
	}
	return nil
}
