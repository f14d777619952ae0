package daemon

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	logsv1 "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/telemetry"
)

// byHand is a sender that takes a step when it is told to.
func (s *sending) byHand(c *collector) *sender {
	conf := &policy.Telemetry{Endpoint: c.URL, Interval: time.Hour}
	s.telemetry.mu.Lock()
	s.telemetry.conf = conf
	s.telemetry.mu.Unlock()
	n := newSender(s.telemetry, s.telemetry.client(*conf, new(api.EdgeUpstream)), conf.Interval)
	s.t.Cleanup(n.client.Close)
	n.cur, _ = loadCursor(s.opts.Place.State)
	n.all()
	return n
}

// A secret that is set while the values are read is known before anything is
// sent, and the values are read after what is sent.
func TestTelemetrySecretMeanwhile(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	const value = "kfe8LJ02sdkfj0o"
	ev := taskEvent("box", 0)
	ev.GetTask().Spec.Argv = []string{"echo", value}
	s.tell(ev)
	times := 0
	s.telemetry.reading = func() {
		if times++; times > 1 {
			return
		}
		if _, err := s.secrets.Set(t.Context(), "key", &api.SecretDefinition{Hosts: []string{"a.example"}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"POST"}, Paths: []string{"/v1/*"}}, []byte(value)); err != nil {
			t.Error(err)
		}
		s.telemetry.secretsChanged()
		s.tell(taskEvent("box", 1))
	}
	n := s.byHand(c)
	if more, wait := n.step(t.Context(), 0); !more || wait != 0 {
		t.Fatal(more, wait)
	}
	c.mu.Lock()
	raw := string(c.raw)
	c.mu.Unlock()
	if strings.Contains(raw, value) || !strings.Contains(raw, "[secret key]") {
		t.Error("the secret was sent, or the record was not")
	}
	if times != 2 || len(c.records) != 1 {
		t.Errorf("read %d times, %d records", times, len(c.records))
	}
	if n.step(t.Context(), 0); times != 2 || len(c.records) != 2 {
		t.Errorf("then read %d times, %d records", times, len(c.records))
	}
}

// A removed guest's log that cannot be read for a while waits; one that never can
// is given up after some tries, and counted.
func TestTelemetryUnreadableLog(t *testing.T) {
	for _, mended := range []bool{true, false} {
		s, c := newSending(t), newCollector(t)
		n := s.byHand(c)
		e := s.guest("box")
		s.record(e, "port.opened", nil)
		s.keepAudit(e)
		delete(s.table, "box")
		odd := filepath.Join(s.spool(), s.spooled()[0], "audit.1.jsonl")
		if err := os.Mkdir(odd, 0o700); err != nil {
			t.Fatal(err)
		}
		for range auditTries - 1 {
			for range 3 { // events come and go meanwhile
				s.tell(taskEvent("other", 1))
				n.step(t.Context(), 0)
			}
			n.all()
		}
		if got := s.spooled(); len(got) != 1 || len(s.telemetry.told.dropped) != 0 {
			t.Fatal("given up too soon:", got, s.telemetry.told.dropped)
		}
		if mended {
			if err := os.Remove(odd); err != nil {
				t.Fatal(err)
			}
		}
		n.step(t.Context(), 0)
		want, lost := 3*(auditTries-1), int64(1)
		if mended {
			want, lost = want+1, 0
		}
		if got := s.spooled(); len(got) != 0 || len(c.records) != want || s.telemetry.told.dropped["damaged"] != lost {
			t.Errorf("mended %v: %v, %d records, %v", mended, got, len(c.records), s.telemetry.told.dropped)
		}
	}
}

// When a request is full the other guests' logs are not even opened; they are
// looked at afterwards.
func TestTelemetryFull(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	big := strings.Repeat("x", 40<<10)
	for i := range telemetry.MaxBytes/len(big) + 1 {
		ev := taskEvent("box", i)
		ev.GetTask().Spec.Argv = []string{big}
		s.tell(ev)
	}
	if err := os.MkdirAll(filepath.Join(s.auditDir(s.guest("odd").name), "audit.1.jsonl"), 0o700); err != nil {
		t.Fatal(err)
	}
	n := s.byHand(c)
	if n.step(t.Context(), 0); len(n.tries) != 0 || len(c.records) == 0 {
		t.Error(n.tries, len(c.records))
	}
	for more := true; more; { // until all was sent
		more, _ = n.step(t.Context(), 0)
	}
	if len(n.tries) != 1 {
		t.Error("control: it was not looked at afterwards")
	}
}

// What a guest of the pool has logged, which was nobody's, does not wait; two
// guests of one name whose start failed are two; what cannot be kept is counted.
func TestTelemetryKept(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	s.byHand(c)
	e := s.guest("box")
	s.record(e, "port.opened", nil)
	e.warm = &warm{}
	if s.keepAudit(e); len(s.spooled()) != 0 {
		t.Error("that of the pool waits:", s.spooled())
	}
	e.warm = nil
	e.info.Created = nil
	s.keepAudit(e)
	s.record(s.guest("box"), "port.opened", nil)
	if s.keepAudit(e); len(s.spooled()) != 2 || len(s.telemetry.told.dropped) != 0 {
		t.Error(s.spooled(), s.telemetry.told.dropped)
	}
	for _, want := range []int64{0, 1} { // the name is taken the second time
		e := s.guest("box")
		e.info.Created = timestamppb.New(time.Unix(5, 0))
		s.record(e, "port.opened", nil)
		if s.keepAudit(e); s.telemetry.told.dropped["spool"] != want {
			t.Error(s.telemetry.told.dropped)
		}
	}
}

// A page that repeats the request's headers shows none of their values, however it
// is written, also where what is shown is cut. The control is the mark.
func TestTelemetryAnswerRepeatsHeaders(t *testing.T) {
	const value, short = "kfe8LJ02/&<sdkfj_0o", "k7Qx"
	s := newSending(t)
	for name, answer := range map[string]string{
		"plain":   "you sent Authorization: Bearer " + value + ", X-Key: " + short,
		"alone":   value,
		"quoted":  strconv.Quote(value) + url.QueryEscape(value),
		"hex":     hex.EncodeToString([]byte(value)),
		"base64":  base64.StdEncoding.EncodeToString([]byte("Bearer " + value)),
		"cut off": strings.Repeat("x", 195) + value,
	} {
		for _, status := range []int{200, 201, 400} {
			kind, body := "text/html", []byte(answer)
			if status == 201 { // stands for one that was taken in part
				kind, status = "application/x-protobuf", 200
				var err error
				if body, err = proto.Marshal(&logsv1.ExportLogsServiceResponse{PartialSuccess: &logsv1.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: answer}}); err != nil {
					t.Fatal(err)
				}
			}
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", kind)
				w.WriteHeader(status)
				w.Write(body)
			}))
			cl := s.telemetry.client(policy.Telemetry{Endpoint: srv.URL, Headers: []policy.TelemetryHeader{{Name: "Authorization", Value: "Bearer " + value}, {Name: "X-Key", Value: short}}}, new(api.EdgeUpstream))
			_, got, err := cl.Logs(t.Context(), []telemetry.Record{{Name: "a"}, {Name: "b"}})
			cl.Close()
			srv.Close()
			if err != nil {
				got = err.Error()
			}
			for _, form := range []string{value[:4], short, hex.EncodeToString([]byte(value[:6])), base64.StdEncoding.EncodeToString([]byte(value))[2:12], url.QueryEscape(value)} {
				if strings.Contains(got, form) {
					t.Errorf("%s, %d: %q is in %s", name, status, form, got)
				}
			}
			if name != "cut off" && !strings.Contains(got, "[secret Authorization]") {
				t.Errorf("control: %s, %d: %s", name, status, got)
			}
		}
	}
}
