package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Telemetry says where events, audit records and figures go.
type Telemetry struct {
	// Endpoint is a receiver of OTLP over HTTP, without /v1/logs.
	Endpoint string
	Headers  []TelemetryHeader
	// Secret is the name of one that is added to each request, or empty.
	Secret string
	// Interval is how often figures are sent.
	Interval time.Duration
}

// TelemetryHeader is sent with each request: its value, or what a file holds.
type TelemetryHeader struct{ Name, Value, File string }

const (
	maxTelemetryHeaders = 16
	// telemetryInterval is the default, and OpenTelemetry's.
	telemetryInterval = 60
)

// headerName is a header that may be set; those that carry the request are not
// to be.
var headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

var headersOurs = []string{"content-type", "content-length", "content-encoding", "host", "connection", "transfer-encoding", "upgrade", "te", "trailer"}

// telemetry reads where the daemon sends what it knows.
func (r *reader) telemetry(n *yaml.Node, f *File) {
	t := &Telemetry{Interval: telemetryInterval * time.Second}
	r.mapping(n, "telemetry",
		field{"endpoint", func(v *yaml.Node) {
			if t.Endpoint = r.text(v, "telemetry.endpoint"); t.Endpoint != "" {
				if err := checkEndpoint(t.Endpoint); err != nil {
					r.problem(v, "telemetry.endpoint: %v", err)
				}
			}
		}},
		field{"interval", func(v *yaml.Node) {
			t.Interval = time.Duration(r.number(v, "telemetry.interval", 10, 3600)) * time.Second
		}},
		field{"secret", func(v *yaml.Node) { t.Secret = r.text(v, "telemetry.secret") }},
		field{"headers", func(v *yaml.Node) { r.telemetryHeaders(v, t) }})
	if isNull(n) {
		return
	}
	if t.Endpoint == "" && n.Kind == yaml.MappingNode {
		if len(n.Content) > 0 {
			r.problem(n, "telemetry needs an endpoint (https://otel.example.com:4318)")
		}
		return
	}
	f.Telemetry = t
}

func (r *reader) telemetryHeaders(n *yaml.Node, t *Telemetry) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.problem(n, "telemetry.headers is a mapping (name: value), not %s", kindOf(n))
		return
	}
	r.pairs(n, func(k, v *yaml.Node) {
		h := TelemetryHeader{Name: k.Value}
		switch {
		case !headerName.MatchString(h.Name) || slices.Contains(headersOurs, strings.ToLower(h.Name)):
			r.problem(k, "%q is no header that can be set", clip(h.Name))
			return
		case len(t.Headers) >= maxTelemetryHeaders:
			r.problem(k, "telemetry.headers has more than %d", maxTelemetryHeaders)
			return
		case v.Kind == yaml.MappingNode:
			r.mapping(v, "a header", field{"file", func(v *yaml.Node) {
				if h.File = r.text(v, "a header's file"); h.File != "" && !filepath.IsAbs(h.File) {
					r.problem(v, "the file %q of a header is not an absolute path", clip(h.File))
				}
			}})
			if h.File == "" {
				r.problem(v, "the header %s names no file", h.Name)
			}
		default:
			h.Value = r.text(v, "a header's value")
			if strings.ContainsFunc(h.Value, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
				r.problem(v, "the value of header %s has characters that no header has", h.Name)
			}
		}
		t.Headers = append(t.Headers, h)
	})
}

// Equal says whether two are the same; nil is off.
func (t *Telemetry) Equal(o *Telemetry) bool {
	if t == nil || o == nil {
		return t == o
	}
	return t.Endpoint == o.Endpoint && t.Secret == o.Secret && t.Interval == o.Interval && slices.Equal(t.Headers, o.Headers)
}

// checkEndpoint says what is wrong with an endpoint, without it: it may hold a
// password. Only loopback may be
// spoken to in clear text.
func checkEndpoint(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return errors.New("it is not a URL like https://otel.example.com:4318")
	case u.User != nil:
		return errors.New("a name or password does not belong into it (set a header from a file or a secret)")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("it ends in its path: there is no query and no fragment")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return errors.New("http would show everything to the network: only loopback may be spoken to without TLS")
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%.20q is not https", u.Scheme)
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
