package telemetry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	logsv1 "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	metricsv1 "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// requestTime bounds one request, its answer included: OTLP's own default.
	requestTime = 10 * time.Second
	// maxAnswer and maxHead bound an answer, in bytes; maxSaid what is shown of it.
	maxAnswer, maxHead, maxSaid = 64 << 10, 16 << 10, 200
	// maxAfter bounds what a receiver may ask to be left alone for.
	maxAfter = time.Hour
)

// Options say where a Client sends.
type Options struct {
	// Endpoint is the receiver's address without /v1/logs, as policy takes it:
	// https, or http on loopback.
	Endpoint string
	// Header adds headers to a request, credentials for example; nil: none. It is
	// called each time, so that a value that was changed counts. What it adds is
	// in no error, if Hide takes it out of an answer that repeats it.
	Header func(r *http.Request) error
	// Hide takes what a request's headers hold out of an answer's words before they
	// are shown; nil: nothing.
	Hide func(sent http.Header, words string) string
	// Proxy is the way out; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
	// Roots are who may vouch for the receiver; nil: those of the host.
	Roots *x509.CertPool
	// Resource is what is said once with each request.
	Resource []Attr
}

// Client sends to one receiver. It may be used by one goroutine at a time.
type Client struct {
	o    Options
	base string
	http *http.Client
	time time.Duration // of one request
	sent http.Header   // of the last request
}

// Error is why a request was not taken.
type Error struct {
	// Refused says that the receiver does not want just this request: it is the
	// records that are at fault, and they may be sent in smaller parts.
	Refused bool
	// After is how long the receiver wants to be left alone; 0: it does not say.
	After time.Duration
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns a client; it connects to nothing yet.
func New(o Options) *Client {
	return &Client{o: o, base: strings.TrimSuffix(o.Endpoint, "/"), time: requestTime, http: &http.Client{
		Transport: &http.Transport{
			Proxy: o.Proxy, TLSClientConfig: &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
			DialContext:         (&net.Dialer{Timeout: requestTime}).DialContext,
			TLSHandshakeTimeout: requestTime, ResponseHeaderTimeout: requestTime, IdleConnTimeout: time.Minute,
			MaxConnsPerHost: 1, MaxIdleConns: 1, MaxResponseHeaderBytes: maxHead, ForceAttemptHTTP2: true,
			DisableCompression: true, // an answer is never unpacked
		},
		// A credential goes where it was meant to, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close lets go of the connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Logs sends records. rejected is how many of them the receiver did not keep,
// though it took the request, and why is its word for that, bounded. err is an
// *Error if none was taken.
func (c *Client) Logs(ctx context.Context, list []Record) (rejected int64, why string, err error) {
	m := new(logsv1.ExportLogsServiceResponse)
	if err := c.post(ctx, "/v1/logs", encodeLogs(c.o.Resource, time.Now(), list), m); err != nil {
		return 0, "", err
	}
	p := m.GetPartialSuccess()
	return min(max(0, p.GetRejectedLogRecords()), int64(len(list))), shown(c.hide(p.GetErrorMessage())), nil
}

// Metrics sends figures that count from start.
func (c *Client) Metrics(ctx context.Context, start time.Time, list []Metric) error {
	return c.post(ctx, "/v1/metrics", encodeMetrics(c.o.Resource, start, time.Now(), list), new(metricsv1.ExportMetricsServiceResponse))
}

func (c *Client) post(ctx context.Context, path string, m, answer proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return &Error{Refused: true, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, c.time)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(b))
	if err != nil {
		return &Error{Err: err}
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", "carreld")
	if c.o.Header != nil {
		if err := c.o.Header(r); err != nil {
			return &Error{Err: err}
		}
	}
	c.sent = r.Header
	res, err := c.http.Do(r)
	if err != nil {
		return &Error{Err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if res.StatusCode != http.StatusOK {
		return c.refused(res, body)
	}
	if err != nil {
		return &Error{Err: fmt.Errorf("read the answer: %w", err)}
	}
	return c.understood(res, body, answer)
}

// refused judges an answer that is not 200. What OTLP says to try again is tried
// again. Of the others only those are about the records that say so: who we are
// and where we send is no fault of theirs, and nothing is thrown away for it.
func (c *Client) refused(res *http.Response, body []byte) error {
	e := &Error{Err: fmt.Errorf("the receiver answers %d %s: %s", res.StatusCode, http.StatusText(res.StatusCode), c.said(res, body))}
	switch res.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		e.Refused = true
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		e.After = after(res.Header.Get("Retry-After"), time.Now())
	}
	return e
}

// after reads Retry-After (RFC 9110, 10.2.3): seconds, or a date.
func after(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32); err == nil {
		return min(maxAfter, time.Duration(n)*time.Second)
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(maxAfter, max(0, t.Sub(now)))
	}
	return 0
}

// understood reads the answer to a request that was taken. Something else that
// says 200, a portal's page for example, has taken nothing.
func (c *Client) understood(res *http.Response, body []byte, answer proto.Message) error {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	switch {
	case len(body) > maxAnswer:
	case len(body) == 0:
		return nil
	case kind == "application/json":
		if json.Valid(body) {
			return nil
		}
	case kind == "text/html" || kind == "text/plain":
	case proto.Unmarshal(body, answer) == nil:
		return nil
	}
	return &Error{Err: fmt.Errorf("what answers 200 is no receiver of OTLP: it says %s", c.said(res, body))}
}

// said is what is shown of an answer, which anybody may have written.
func (c *Client) said(res *http.Response, body []byte) string {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if kind == "application/x-protobuf" || len(body) == 0 {
		return fmt.Sprintf("%d bytes", len(body))
	}
	return shown(c.hide(string(body)))
}

// hide takes what the last request's headers hold out of a text, since a page
// that somebody answers may repeat them.
func (c *Client) hide(s string) string {
	if c.o.Hide == nil {
		return s
	}
	return c.o.Hide(c.sent, s)
}

// shown is a receiver's word, printable and short.
func shown(s string) string {
	if s == "" {
		return ""
	}
	q := strconv.QuoteToASCII(s[:min(len(s), maxSaid)])
	return q[:min(len(q), 2*maxSaid)]
}
