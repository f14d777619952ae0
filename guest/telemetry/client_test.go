package telemetry

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	logsv1 "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	metricsv1 "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	"google.golang.org/protobuf/proto"
)

// receiver answers as fn does.
func receiver(t *testing.T, fn http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(fn)
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, o Options) *Client {
	t.Helper()
	c := New(o)
	t.Cleanup(c.Close)
	return c
}

var some = []Record{{Time: time.Unix(5, 7), Name: "carrel.task", Body: `{"a":1}`, Attrs: []Attr{
	{"s", "text"}, {"n", int64(7)}, {"b", true}, {"l", []string{"x", "y\xff"}}, {"odd", 1.5},
}}, {Time: time.Unix(6, 0), Name: "carrel.egress", Warn: true}}

// What is sent is what a receiver of the protocol reads.
func TestSend(t *testing.T) {
	var got logsv1.ExportLogsServiceRequest
	var figures metricsv1.ExportMetricsServiceRequest
	srv := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/x-protobuf" || r.Header.Get("X-Key") != "k" {
			t.Errorf("%s %v %v", r.Method, r.Header, err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
		switch r.URL.Path {
		case "/otlp/v1/logs":
			err = proto.Unmarshal(b, &got)
		case "/otlp/v1/metrics":
			err = proto.Unmarshal(b, &figures)
		default:
			err = errors.New(r.URL.Path)
		}
		if err != nil {
			t.Error(err)
		}
	})
	c := client(t, Options{Endpoint: srv.URL + "/otlp/", Resource: []Attr{{"service.name", "carreld"}},
		Header: func(r *http.Request) error { r.Header.Set("X-Key", "k"); return nil }})
	if _, _, err := c.Logs(t.Context(), some); err != nil {
		t.Fatal(err)
	}
	all := got.ResourceLogs[0]
	if all.Resource.Attributes[0].Value.GetStringValue() != "carreld" || all.ScopeLogs[0].Scope.Name != scope || len(all.ScopeLogs[0].LogRecords) != 2 {
		t.Fatal(&got)
	}
	one := all.ScopeLogs[0].LogRecords[0]
	at := one.Attributes
	if one.TimeUnixNano != 5e9+7 || one.ObservedTimeUnixNano == 0 || one.EventName != "carrel.task" || one.Body.GetStringValue() != `{"a":1}` ||
		one.SeverityNumber != logs.SeverityNumber_SEVERITY_NUMBER_INFO || len(at) != 4 || at[0].Value.GetStringValue() != "text" || at[1].Value.GetIntValue() != 7 ||
		!at[2].Value.GetBoolValue() || at[3].Value.GetArrayValue().Values[1].GetStringValue() != "y\ufffd" {
		t.Error(one)
	}
	if two := all.ScopeLogs[0].LogRecords[1]; two.SeverityText != "WARN" || two.Body != nil {
		t.Error(two)
	}
	start := time.Unix(3, 0)
	err := c.Metrics(t.Context(), start, []Metric{
		{Name: "n", Unit: "By", Sum: true, Points: []Point{{Value: 5, Attrs: []Attr{{"k", "v"}}}}}, {Name: "g", Points: []Point{{Value: -1}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := figures.ResourceMetrics[0].ScopeMetrics[0].Metrics
	sum, gauge := m[0].GetSum(), m[1].GetGauge()
	if !sum.GetIsMonotonic() || sum.DataPoints[0].GetAsInt() != 5 || sum.DataPoints[0].StartTimeUnixNano != 3e9 || gauge.DataPoints[0].GetAsInt() != -1 || gauge.DataPoints[0].StartTimeUnixNano != 0 {
		t.Error(m)
	}
}

// What a receiver may answer, and what comes of it: taken, refused for itself, or
// to be tried again. Nothing of an answer is believed or shown without bounds.
func TestAnswers(t *testing.T) {
	partial, err := proto.Marshal(&logsv1.ExportLogsServiceResponse{PartialSuccess: &logsv1.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "too \x1b[31m old" + strings.Repeat("x", 999)}})
	if err != nil {
		t.Fatal(err)
	}
	lots, err := proto.Marshal(&logsv1.ExportLogsServiceResponse{PartialSuccess: &logsv1.ExportLogsPartialSuccess{RejectedLogRecords: 1 << 60}})
	if err != nil {
		t.Fatal(err)
	}
	const proto, html, text = "application/x-protobuf", "text/html; charset=utf-8", "text/plain"
	for name, c := range map[string]struct {
		status     int
		kind, head string // head is Retry-After
		body       []byte
		rejected   int64
		refused    bool
		after      time.Duration
		fails      string // in the error; empty: it is taken
	}{
		"good":          {status: 200, kind: proto},
		"good, JSON":    {status: 200, kind: "application/json", body: []byte(`{"partialSuccess":{}}`)},
		"partly":        {status: 200, kind: proto, body: partial, rejected: 1},
		"more than all": {status: 200, kind: proto, body: lots, rejected: 2},
		"a portal":      {status: 200, kind: html, body: []byte("<html>log in \x1b[31m</html>"), fails: "no receiver of OTLP"},
		"garbage":       {status: 200, kind: proto, body: []byte("\xff\xff\xff garbage"), fails: "no receiver of OTLP"},
		"bad JSON":      {status: 200, kind: "application/json", body: []byte("{"), fails: "no receiver of OTLP"},
		"without end":   {status: 200, kind: proto, body: bytes.Repeat([]byte{0}, maxAnswer+1), fails: "no receiver of OTLP"},
		"created":       {status: 201, kind: proto, fails: "201"},
		"bad":           {status: 400, kind: text, body: []byte("hunter\x1b]0;"), refused: true, fails: `"hunter\x1b]0;"`},
		"too large":     {status: 413, kind: text, refused: true, fails: "413"},
		"who are you":   {status: 401, kind: text, fails: "401"},
		"not here":      {status: 404, kind: html, body: bytes.Repeat([]byte("x"), 1<<20), fails: "404"},
		"busy":          {status: 429, kind: text, head: "7", after: 7 * time.Second, fails: "429"},
		"busy for long": {status: 429, kind: text, head: "4000000000", after: maxAfter, fails: "429"},
		"busy, oddly":   {status: 429, kind: text, head: "-1; soon", fails: "429"},
		"away":          {status: 503, kind: text, head: "Fri, 01 Jan 2100 00:00:00 GMT", after: maxAfter, fails: "503"},
		"past":          {status: 503, kind: text, head: "Fri, 01 Jan 1999 00:00:00 GMT", fails: "503"},
		"broken":        {status: 500, kind: text, fails: "500"},
		"elsewhere":     {status: 307, kind: text, fails: "307"},
	} {
		calls := 0
		srv := receiver(t, func(w http.ResponseWriter, r *http.Request) {
			calls++
			w.Header().Set("Content-Type", c.kind)
			w.Header().Set("Location", "/other")
			if c.head != "" {
				w.Header().Set("Retry-After", c.head)
			}
			w.WriteHeader(c.status)
			w.Write(c.body)
		})
		rejected, why, err := client(t, Options{Endpoint: srv.URL}).Logs(t.Context(), some)
		if calls != 1 || rejected != c.rejected || len(why) > 2*maxSaid || strings.Contains(why, "\x1b") {
			t.Errorf("%s: %d calls, %d rejected: %s", name, calls, rejected, why)
		}
		if c.fails == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var e *Error
		if !errors.As(err, &e) || e.Refused != c.refused || e.After != c.after || !strings.Contains(e.Error(), c.fails) || strings.Contains(e.Error(), "\x1b") || len(e.Error()) > 600 {
			t.Errorf("%s: %+v", name, err)
		}
	}
}

// A receiver that does not answer is left after a while; one that cannot be
// reached, and a header that cannot be had, are no reason to lose anything.
func TestUnreachable(t *testing.T) {
	gone := make(chan struct{}, 1)
	srv := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		select {
		case gone <- struct{}{}:
		default:
		}
	})
	c := client(t, Options{Endpoint: srv.URL})
	var e *Error
	for c.time = 50 * time.Millisecond; ; c.time *= 2 {
		_, _, err := c.Logs(t.Context(), some)
		if !errors.As(err, &e) || e.Refused || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		select {
		case <-gone:
		case <-time.After(c.time): // on a slow machine it was left before it was reached
			continue
		}
		break
	}
	dead := receiver(t, nil)
	dead.Close()
	if _, _, err := client(t, Options{Endpoint: dead.URL}).Logs(t.Context(), some); !errors.As(err, &e) || e.Refused {
		t.Error(err)
	}
	calls := 0
	ok := receiver(t, func(http.ResponseWriter, *http.Request) { calls++ })
	no := errors.New("no file")
	if _, _, err := client(t, Options{Endpoint: ok.URL, Header: func(*http.Request) error { return no }}).Logs(t.Context(), some); !errors.Is(err, no) || calls != 0 {
		t.Error(err, calls)
	}
}

// A receiver is believed if the host's roots vouch for it. The control knows the
// private authority.
func TestTLS(t *testing.T) {
	calls := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }))
	defer srv.Close()
	var unknown x509.UnknownAuthorityError
	if _, _, err := client(t, Options{Endpoint: srv.URL}).Logs(t.Context(), some); !errors.As(err, &unknown) || calls != 0 {
		t.Error(err, calls)
	}
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	if _, _, err := client(t, Options{Endpoint: srv.URL, Roots: roots}).Logs(t.Context(), some); err != nil || calls != 1 {
		t.Error("control:", err, calls)
	}
}

func TestBound(t *testing.T) {
	mask := strings.NewReplacer("hunter2", "[secret db]").Replace
	r := Record{Body: strings.Repeat("é", MaxBody), Attrs: []Attr{
		{"s", "hunter2" + strings.Repeat("x", MaxValue)}, {"n", int64(1)}, {"l", append([]string{"hunter2"}, make([]string, 2*MaxList)...)}, {"big", []string{strings.Repeat("y", MaxBody), "z"}},
	}}
	r.Bound(mask)
	l := r.Attrs[2].Value.([]string)
	if len(r.Body) > MaxBody+3 || !strings.HasPrefix(r.Attrs[0].Value.(string), "[secret db]x") || len(r.Attrs[0].Value.(string)) != MaxValue || len(l) != MaxList || l[0] != "[secret db]" {
		t.Errorf("%d bytes, %v", len(r.Body), l[0])
	}
	if last := r.Attrs[len(r.Attrs)-1]; last.Key != "carrel.truncated" || r.Size() > 4*MaxBody {
		t.Error(last, r.Size())
	}
	r = Record{Body: "short", Attrs: []Attr{{"s", "x"}}}
	if r.Bound(mask); len(r.Attrs) != 1 || r.Body != "short" {
		t.Error(r)
	}
}
