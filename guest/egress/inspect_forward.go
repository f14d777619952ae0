package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

// Bounds of what leads to the server.
const (
	// maxUpstream is how many connections one of the guest may have to the server
	// at once, if that speaks HTTP/1. Requests beyond it wait.
	maxUpstream = 16
	// maxAnswerHead is the longest head of an answer, in bytes.
	maxAnswerHead  = 256 << 10
	upstreamIdle   = 90 * time.Second
	upstreamPing   = time.Minute
	expectContinue = 2 * time.Second
	// maxInterim is how many answers may come before the answer (1xx).
	maxInterim = 16
)

// transport is how this connection reaches its server: with requests newly
// written, to a server that proved its name, and never through anything that the
// environment names. It follows no redirect, keeps no cookie and unpacks nothing.
func (i *inspection) transport() *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, _, err := i.leg.dial(ctx)
			return c, err
		},
		DisableCompression: true,
		ForceAttemptHTTP2:  i.secure,
		MaxConnsPerHost:    maxUpstream, MaxIdleConnsPerHost: maxUpstream, IdleConnTimeout: upstreamIdle,
		TLSHandshakeTimeout: helloTimeout, ExpectContinueTimeout: expectContinue,
		MaxResponseHeaderBytes: maxAnswerHead,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: upstreamPing, WriteByteTimeout: idleLimit},
	}
	if i.secure {
		t.TLSClientConfig = i.leg.tls()
		t.TLSClientConfig.InsecureSkipVerify = false
		return t
	}
	if p := i.leg.proxy; p != nil {
		// dial has made whatever TLS the way to the proxy needs.
		via := &url.URL{Scheme: "http", Host: p.Host, User: p.User}
		t.Proxy = http.ProxyURL(via)
	}
	return t
}

// exchange is one request that was allowed, and its answer.
type exchange struct {
	i       *inspection
	j       judged
	in      *http.Request
	edge    *secret.Edge // of the moment of the judgement
	upgrade bool

	up, down atomic.Int64
	no       atomic.Pointer[bad] // why it was stopped on its way
	noted    sync.Once
}

// serve carries the request out and the answer back.
func (x *exchange) serve(w http.ResponseWriter) {
	defer func() { x.i.leg.done(x.j, x.up.Load(), x.down.Load()) }()
	// HTTP/2 is like that anyway. Without it net/http reads on in the body while
	// that is still being sent to the server, and bytes are lost.
	if x.in.ProtoMajor == 1 {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			panic(err)
		}
	}
	// Nothing is added to an answer that has no type.
	w.Header()["Content-Type"] = nil
	p := httputil.ReverseProxy{
		Rewrite: x.rewrite, Transport: x, ModifyResponse: x.answered, ErrorHandler: x.failed,
		FlushInterval: -1, // as it comes: events, gRPC, long polls
		BufferPool:    pool{}, ErrorLog: quiet,
	}
	interim := 0
	ctx := httptrace.WithClientTrace(x.in.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(int, textproto.MIMEHeader) error {
			if interim++; interim > maxInterim {
				return errInterim
			}
			return nil
		},
	})
	p.ServeHTTP(w, x.in.WithContext(ctx))
}

var errInterim = errors.New("it sends too many answers before the answer")

// rewrite makes the request anew, from what was judged.
func (x *exchange) rewrite(p *httputil.ProxyRequest) {
	in, out, d := x.in, p.Out, x.i.leg.dest
	authority := d.String()
	if d.Port == x.i.port() {
		authority = authority[:len(authority)-len(fmt.Sprintf(":%d", d.Port))]
	}
	out.URL = &url.URL{
		Scheme: x.i.scheme(), Host: d.String(),
		Path: in.URL.Path, RawPath: in.URL.RawPath, RawQuery: in.URL.RawQuery, ForceQuery: in.URL.ForceQuery,
	}
	out.Host = authority
	out.Header.Del("Host")
	// A trailer is a header that nobody has judged. None is needed: RFC 9110, 6.5.1.
	out.Header.Del("Trailer")
	out.Trailer = nil
	if out.Body != nil {
		out.Body = &upBody{ReadCloser: out.Body, x: x}
	}
}

// RoundTrip sends the request. The credential is added to what only a server
// with a good certificate for the destination's name is ever sent: the transport
// verifies before it writes a byte.
func (x *exchange) RoundTrip(out *http.Request) (*http.Response, error) {
	d := x.i.leg.dest
	if err := x.prepare(out); err != nil {
		if out.Body != nil {
			out.Body.Close()
		}
		return nil, err
	}
	if out.Body != nil {
		out.Body = &upBody{ReadCloser: x.edge.Body(out.Body, d.Host.String()), x: x, outer: true}
	}
	return x.i.up.RoundTrip(out)
}

// prepare makes the request fit to leave.
func (x *exchange) prepare(out *http.Request) error {
	d, bound := x.i.leg.dest, x.j.Secret != "" || x.j.Verdict.Bound
	switch {
	case x.j.Secret != "" && !x.i.secure:
		return &secret.Refused{Reason: fmt.Sprintf("the secret %s is only added over TLS", x.j.Secret)}
	case bound && x.upgrade:
		return &secret.Refused{Reason: "a secret is for this host, and what goes through a WebSocket to it could not be held to that secret"}
	case bound && x.j.Secret == "":
		if err := stripCredentials(out); err != nil {
			return err
		}
	}
	if up := x.j.MaxUp; up > 0 && headSize(out)+max(out.ContentLength, 0) > up {
		return tooMuch(up)
	}
	if err := x.edge.Outgoing(out, d.Host.String(), d.Port, x.j.Secret); err != nil {
		return err
	}
	if x.j.Secret != "" {
		x.edge.Unpacked(out)
	}
	return nil
}

// tooMuch is why a request is stopped that sends more than its rule allows.
func tooMuch(up int64) error {
	return &bad{http.StatusForbidden, fmt.Sprintf("The request sends more than the %d bytes that its rule allows.", up)}
}

func (b *bad) Error() string { return b.reason }

// headSize is about what the head of a request takes, in bytes.
func headSize(r *http.Request) int64 {
	n := len(r.Method) + len(r.URL.RequestURI()) + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + 4
		}
	}
	return int64(n)
}

// upBody is a request's body on its way out.
type upBody struct {
	io.ReadCloser
	x *exchange
	// outer: this is what the transport reads, to be looked at for why it failed;
	// otherwise it is what the guest sends, to be counted.
	outer bool
}

func (b *upBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.outer {
		if err != nil && !errors.Is(err, io.EOF) {
			b.x.stop(err)
		}
		return n, err
	}
	sent := b.x.up.Add(int64(n))
	if up := b.x.j.MaxUp; up > 0 && n > 0 && headSize(b.x.in)+sent > up {
		clear(p[:n])
		return 0, tooMuch(up)
	}
	return n, err
}

// stop notes why the request was stopped, if that was a decision of ours.
func (x *exchange) stop(err error) *bad {
	var no *bad
	var refused *secret.Refused
	var form *malformed
	if g := x.i.gate; g != nil {
		form = g.broken.Load() // net/http does not always hand the error on
	}
	switch {
	case errors.As(err, &no):
	case errors.As(err, &refused):
		no = &bad{http.StatusForbidden, refused.Reason}
	case form != nil:
		no = &bad{http.StatusBadRequest, "The body is not proper HTTP/1.1: " + string(*form) + "."}
	default:
		return x.no.Load()
	}
	x.no.CompareAndSwap(nil, no)
	x.noted.Do(func() { x.i.leg.note(x.request(), no.reason) })
	return x.no.Load()
}

func (x *exchange) request() policy.Request {
	return policy.Request{Method: x.in.Method, Path: x.in.URL.EscapedPath()}
}

// answered looks at the head of an answer before it goes to the guest.
func (x *exchange) answered(res *http.Response) error {
	// Other ways to the server are not the guest's to know: RFC 7838.
	res.Header.Del("Alt-Svc")
	if res.StatusCode == http.StatusSwitchingProtocols {
		return x.switched(res)
	}
	if x.upgrade {
		// The gate has stopped looking.
		res.Header.Set("Connection", "close")
	}
	if x.j.Secret != "" {
		if err := x.edge.Incoming(res); err != nil {
			return err
		}
	}
	res.Body = &downBody{ReadCloser: res.Body, x: x}
	return nil
}

// failed answers a request that could not be carried out.
func (x *exchange) failed(w http.ResponseWriter, _ *http.Request, err error) {
	no := x.stop(err)
	var refused *refusal
	var cert *tls.CertificateVerificationError
	switch {
	case no != nil:
	case x.in.Context().Err() != nil:
		panic(http.ErrAbortHandler) // nobody is there
	case errors.As(err, &refused):
		// The core has recorded it.
		x.i.answer(w, x.in, http.StatusForbidden, fmt.Sprintf("carrel: egress to %s is not allowed: %s", x.i.leg.dest, refused.reason))
		return
	case errors.As(err, &cert):
		no = &bad{http.StatusBadGateway, fmt.Sprintf("The server does not prove to be %s: %s.", x.i.leg.dest.Host, x.say(certError(cert)))}
		x.i.leg.note(x.request(), no.reason)
	default:
		no = &bad{http.StatusBadGateway, fmt.Sprintf("The request to %s failed: %s.", x.i.leg.dest, x.say(err))}
	}
	x.i.answer(w, x.in, no.status, "carrel: "+no.reason)
}

// say is an error's text, which may quote the server, in a form fit to be shown.
func (x *exchange) say(err error) string { return text(x.edge.Redact(err.Error()), 200) }

// certError says what is wrong with a certificate without quoting all of its
// names.
func certError(err *tls.CertificateVerificationError) error {
	var name x509.HostnameError
	if errors.As(err, &name) {
		return errors.New("its certificate is for other names")
	}
	return err.Err
}

// downBody counts what an answer brings.
type downBody struct {
	io.ReadCloser
	x *exchange
}

func (b *downBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.x.down.Add(int64(n))
	return n, err
}

// pool lends the core's buffers.
type pool struct{}

func (pool) Get() []byte  { return chunks.Get().(*[copyChunk]byte)[:] }
func (pool) Put(b []byte) { chunks.Put((*[copyChunk]byte)(b)) }
