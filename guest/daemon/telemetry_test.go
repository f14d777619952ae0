package daemon

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	logsv1 "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	metricsv1 "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon/store"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
	"github.com/carrel-vm/carrel/guest/telemetry"
)

// collector is a receiver of OTLP.
type collector struct {
	*httptest.Server
	records chan *logs.LogRecord // those that it took
	figures chan *metricsv1.ExportMetricsServiceRequest

	mu     sync.Mutex
	answer func(n int, r *http.Request, list []*logs.LogRecord) int // HTTP status; nil: 200
	calls  int
	raw    []byte // all that came
	heads  []http.Header
}

func newCollector(t *testing.T) *collector {
	c := &collector{records: make(chan *logs.LogRecord, 10_000), figures: make(chan *metricsv1.ExportMetricsServiceRequest, 100)}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return // whoever sent it is gone
		}
		if r.URL.Path == "/v1/metrics" {
			m := new(metricsv1.ExportMetricsServiceRequest)
			if err := proto.Unmarshal(b, m); err != nil {
				t.Error(err)
			}
			c.figures <- m
			return
		}
		m := new(logsv1.ExportLogsServiceRequest)
		if err := proto.Unmarshal(b, m); err != nil {
			t.Error(err)
		}
		list := m.ResourceLogs[0].ScopeLogs[0].LogRecords
		c.mu.Lock()
		c.raw, c.heads = append(c.raw, b...), append(c.heads, r.Header)
		n, answer := c.calls, c.answer
		c.calls++
		c.mu.Unlock()
		if answer != nil {
			if s := answer(n, r, list); s != 200 {
				if s == 429 {
					w.Header().Set("Retry-After", "9")
				}
				http.Error(w, "no", s)
				return
			}
		}
		for _, l := range list {
			c.records <- l
		}
	}))
	t.Cleanup(c.Server.Close)
	return c
}

// attr is a record's attribute; nil if it has none of the name.
func attr(l *logs.LogRecord, key string) *common.AnyValue {
	for _, a := range l.Attributes {
		if a.Key == key {
			return a.Value
		}
	}
	return nil
}

func (c *collector) take(n int) (list []*logs.LogRecord) {
	for range n {
		list = append(list, <-c.records)
	}
	return list
}

// sending is a daemon whose logs are sent to a collector.
type sending struct {
	*Daemon
	t      *testing.T
	pauses chan time.Duration // the sender waits until somebody has taken it
	kept   chan struct{}      // an element for each time that the cursor was written
	cancel context.CancelFunc
}

func newSending(t *testing.T) *sending {
	dir := t.TempDir()
	d := &Daemon{opts: Options{Place: place.Place{State: filepath.Join(dir, "state"), Config: filepath.Join(dir, "config")}}, started: time.Now(),
		log: slog.New(slog.DiscardHandler), guests: filepath.Join(dir, "state", "guests"), table: map[string]*entry{}}
	for _, p := range []string{d.opts.Place.State, d.opts.Place.Config, d.guests} {
		if err := place.MakePrivate(p); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if d.secrets, err = secret.Open(secret.Options{Dir: d.opts.Place.Config, Kind: "file"}); err != nil {
		t.Fatal(err)
	}
	if d.index, err = store.Open(d.opts.Place.State); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.index.Close() })
	d.events = newEvents(d.eventLog())
	d.telemetry = newExporter(d)
	d.events.seen = d.telemetry.tally.seen
	s := &sending{Daemon: d, t: t, pauses: make(chan time.Duration), kept: make(chan struct{}, 10_000)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	t.Cleanup(s.stop)
	return s
}

// guest adds one to the table, with a folder.
func (s *sending) guest(name string) *entry {
	if err := os.MkdirAll(s.auditDir(name), 0o700); err != nil {
		s.t.Fatal(err)
	}
	e := newEntry(name, &api.Guest{Name: name, Created: timestamppb.Now(), State: api.GuestState_GUEST_STATE_READY})
	s.mu.Lock()
	s.table[name] = e
	s.mu.Unlock()
	return e
}

// start runs a sender as use does, but for its pauses.
func (s *sending) start(c *collector, interval time.Duration) {
	conf := &policy.Telemetry{Endpoint: c.URL, Interval: interval}
	s.telemetry.mu.Lock()
	s.telemetry.conf = conf
	s.telemetry.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	n := newSender(s.telemetry, s.telemetry.client(*conf, new(api.EdgeUpstream)), interval)
	n.kept = func() { s.kept <- struct{}{} }
	n.after = func(d time.Duration) <-chan time.Time {
		ch := make(chan time.Time, 1)
		go func() {
			select {
			case s.pauses <- d:
				ch <- time.Now()
			case <-ctx.Done():
			}
		}()
		return ch
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.run(ctx)
		n.client.Close()
	}()
	s.cancel = func() { cancel(); <-done }
}

// settle waits until so many records were sent in all, and that is on the disk.
func (s *sending) settle(n int64) {
	for {
		<-s.kept
		s.telemetry.mu.Lock()
		sent := s.telemetry.told.sent
		s.telemetry.mu.Unlock()
		if sent >= n {
			return
		}
	}
}

func (s *sending) stop() {
	s.cancel()
	s.owned.Wait()
}

func (s *sending) tell(ev *api.Event) {
	s.t.Helper()
	if err := s.events.append(context.Background(), ev); err != nil {
		s.t.Error(err)
	}
}

func taskEvent(guest string, n int) *api.Event {
	return &api.Event{Guest: guest, Kind: &api.Event_Task{Task: &api.Task{Id: fmt.Sprint("T", n), Guest: guest, State: api.TaskState_TASK_STATE_EXITED,
		Spec: &api.TaskSpec{Argv: []string{"make", "test"}, Workdir: "/src"}, Ending: &api.Ending{Status: 3, Cause: "said\x1b"}}}}
}

// sequences are the events' numbers, in the order in which they came.
func sequences(list []*logs.LogRecord) (out []int64) {
	for _, l := range list {
		if v := attr(l, "carrel.event.sequence"); v != nil {
			out = append(out, v.GetIntValue())
		}
	}
	return out
}

func inOrder(t *testing.T, seqs []int64, n int) {
	t.Helper()
	if len(seqs) != n || !slices.IsSorted(seqs) || len(slices.Compact(slices.Clone(seqs))) != n {
		t.Errorf("%d events came, not %d, each once and in order: %v", len(seqs), n, seqs)
	}
}

// Through an outage, a receiver that asks for time, and one that is not one,
// nothing is lost, nothing comes twice, and nobody who makes events waits.
func TestTelemetryOutage(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	e := s.guest("box")
	c.answer = func(n int, _ *http.Request, _ []*logs.LogRecord) int {
		return []int{503, 502, 429, 404, 200}[min(n, 4)]
	}
	for i := range 20 {
		s.tell(taskEvent("box", i))
	}
	s.record(e, "share.added", &api.Share{Path: "/src"})
	s.start(c, time.Hour)
	bounds := [][2]time.Duration{{750 * time.Millisecond, 1250 * time.Millisecond}, {1500 * time.Millisecond, 2500 * time.Millisecond}, {9 * time.Second, 9 * time.Second}, {6 * time.Second, 10 * time.Second}}
	for i, b := range bounds {
		if i == 1 { // while the receiver is away
			for i := range 20 {
				s.tell(taskEvent("box", 20+i))
			}
		}
		if d := <-s.pauses; d < b[0] || d > b[1] {
			t.Errorf("pause %d is %v, not between %v and %v", i, d, b[0], b[1])
		}
	}
	list := c.take(41)
	inOrder(t, sequences(list), 40)
	i := slices.IndexFunc(list, func(l *logs.LogRecord) bool { return l.EventName == "carrel.audit.share.added" })
	if i < 0 || attr(list[i], "carrel.audit.sequence").GetIntValue() != 1 || !strings.Contains(list[i].Body.GetStringValue(), `"path":"/src"`) {
		t.Error("the share's record did not come")
	}
	// What comes now is sent now: by an event, and by a record without one.
	s.tell(taskEvent("box", 99))
	c.take(1)
	s.record(e, "port.opened", &api.Port{HostPort: 1})
	if l := c.take(1)[0]; l.EventName != "carrel.audit.port.opened" {
		t.Error(l)
	}
	s.telemetry.mu.Lock()
	defer s.telemetry.mu.Unlock()
	if st := s.telemetry.told; st.failures != 4 || len(st.dropped) != 0 || st.trouble != "" && st.sent == 0 {
		t.Errorf("%+v", st)
	}
}

// A sender that was killed is gone on after by the next one. The control has lost
// where it was, and sends all again.
func TestTelemetryResume(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	e := s.guest("box")
	for i := range 300 { // more than one request holds
		s.tell(taskEvent("box", i))
	}
	for range 40 {
		s.record(e, "port.opened", nil)
	}
	s.start(c, time.Hour)
	first := c.take(340)
	s.settle(340)
	s.cancel()
	for i := range 5 {
		s.tell(taskEvent("box", i))
	}
	s.record(e, "port.closed", nil)
	s.start(c, time.Hour)
	all := append(first, c.take(6)...)
	s.settle(346)
	s.cancel()
	if len(c.records) > 0 {
		t.Errorf("%d records came twice", len(c.records))
	}
	inOrder(t, sequences(all), 305)
	if err := os.Remove(filepath.Join(s.opts.Place.State, fileCursor)); err != nil {
		t.Fatal(err)
	}
	s.start(c, time.Hour)
	inOrder(t, sequences(c.take(346)), 305)
}

// What a receiver refuses for itself is found, counted and left behind; all else
// arrives. What it says it did not keep is counted, too, and the figures have both.
func TestTelemetryRefused(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	s.guest("box")
	c.answer = func(_ int, _ *http.Request, list []*logs.LogRecord) int {
		if slices.ContainsFunc(list, func(l *logs.LogRecord) bool { return strings.Contains(l.Body.GetStringValue(), "poison") }) {
			return 400
		}
		return 200
	}
	for i := range 30 {
		ev := taskEvent("box", i)
		if i == 7 || i == 22 {
			ev.GetTask().Spec.Argv[0] = "poison"
		}
		s.tell(ev)
	}
	s.start(c, 100*time.Millisecond)
	inOrder(t, sequences(c.take(28)), 28)
	for {
		got := map[string]int64{}
		for _, m := range (<-c.figures).ResourceMetrics[0].ScopeMetrics[0].Metrics {
			ps := m.GetSum().GetDataPoints()
			if ps == nil {
				ps = m.GetGauge().GetDataPoints()
			}
			for _, p := range ps {
				key := m.Name
				for _, a := range p.Attributes {
					key += "/" + a.Value.GetStringValue()
				}
				got[key] = p.GetAsInt()
			}
		}
		if got["carrel.telemetry.dropped/refused"] == 0 {
			continue // of before the answer was counted
		}
		want := map[string]int64{"carrel.telemetry.dropped/refused": 2, "carrel.telemetry.sent": 28, "carrel.telemetry.queue": 0, "carrel.guests/ready": 1, "carrel.guests/stopped": 0, "carrel.tasks.ended/failed": 30, "carrel.egress.bytes/up": 0}
		for k, n := range want {
			if v, there := got[k]; !there || v != n {
				t.Errorf("%s is %d, not %d", k, v, n)
			}
		}
		break
	}
}

// What the log lost before it could be sent is a gap that is told and counted.
func TestTelemetryOverrun(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	s.events = newEvents(&memoryEvents{max: 10})
	told(t, s.events, "a", 5)
	s.start(c, time.Hour)
	c.take(5)
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	c.mu.Lock()
	c.answer = func(int, *http.Request, []*logs.LogRecord) int {
		select {
		case held <- struct{}{}:
			<-hold
		default:
		}
		return 200
	}
	c.mu.Unlock()
	told(t, s.events, "a", 1)
	<-held // the receiver is slow; those who make events go on
	told(t, s.events, "a", 40)
	close(hold)
	list := c.take(1 + 1 + 10)
	gap := list[1]
	if gap.EventName != "carrel.gap" || gap.SeverityText != "WARN" || attr(gap, "carrel.gap.first").GetIntValue() != 7 || attr(gap, "carrel.event.sequence").GetIntValue() != 36 {
		t.Error(gap)
	}
	inOrder(t, sequences(list), 12)
	s.settle(17)
	s.cancel()
	if n := s.telemetry.told.dropped["overrun"]; n != 30 {
		t.Error(n, "are said to be lost")
	}
}

// C14 for this sink: whatever a secret is put into, and in whatever form, it is in
// nothing that is sent. The control is the mark in its place; a guest's words are
// marked as such.
func TestTelemetrySecrets(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 9))
	for range 3 {
		b := make([]byte, 24+r.IntN(40))
		for i := range b {
			b[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+/=.~\"<&"[r.IntN(72)]
		}
		b[0], b[len(b)-1] = 'k', 'x'
		v := string(b)
		s, c := newSending(t), newCollector(t)
		e := s.guest("box")
		if _, err := s.secrets.Set(t.Context(), "key", &api.SecretDefinition{Hosts: []string{"a.example"}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"POST"}, Paths: []string{"/v1/*"}}, []byte(v)); err != nil {
			t.Fatal(err)
		}
		ev := taskEvent("box", 0)
		ev.GetTask().Spec.Argv = []string{"curl", "-H", "Bearer " + v, url.QueryEscape(v), base64.StdEncoding.EncodeToString([]byte("u:" + v)), fmt.Sprintf("%x", v), fmt.Sprintf("%q", v)}
		ev.GetTask().Spec.Workdir, ev.GetTask().Ending.Cause = "/"+v, "exec "+v
		s.tell(ev)
		s.tell(&api.Event{Guest: "box", Kind: &api.Event_Egress{Egress: &api.EgressEvent{Sequence: 1, Host: v, Path: "/?k=" + url.QueryEscape(v), Method: v, Verdict: &api.EgressVerdict{Reason: v}}}})
		s.tell(&api.Event{Guest: "box", Kind: &api.Event_Changed{Changed: &api.Guest{Name: "box", Cause: v}}})
		s.record(e, "egress.answered", &api.EgressEvent{Host: v})
		s.start(c, time.Hour)
		list := c.take(4)
		s.cancel()
		c.mu.Lock()
		all := string(c.raw)
		c.mu.Unlock()
		escaped := fmt.Sprintf("%q", v)
		for _, form := range []string{v, url.QueryEscape(v), base64.StdEncoding.EncodeToString([]byte(v))[:16], fmt.Sprintf("%x", v), escaped[1 : len(escaped)-1]} {
			if strings.Contains(all, form) {
				t.Errorf("%q was sent", form)
			}
		}
		for _, l := range list {
			if !strings.Contains(l.Body.GetStringValue(), "[secret key]") {
				t.Errorf("%s: no mark in its body: %s", l.EventName, l.Body.GetStringValue())
			}
			if attr(l, "carrel.untrusted") == nil {
				t.Errorf("%s: nothing in it is marked as a guest's word", l.EventName)
			}
		}
		if a := attr(list[0], "process.command_args").GetArrayValue().GetValues(); len(a) != 7 || a[2].GetStringValue() != "Bearer [secret key]" {
			t.Error(a)
		}
		if strings.Contains(list[0].Body.GetStringValue(), "\x1b") {
			t.Error("a control character was sent as it is")
		}
	}
}

// The audit log of a guest that was removed waits for the receiver, and goes when
// it was sent. With telemetry off it goes with its guest.
func TestTelemetryRemovedGuest(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	e := s.guest("box")
	s.record(e, "review.applied", map[string]any{"files": 3})
	s.keepAudit(e)
	if got := s.spooled(); len(got) != 0 {
		t.Error("kept, though nobody is to have it:", got)
	}
	away := make(chan struct{})
	c.answer = func(n int, _ *http.Request, _ []*logs.LogRecord) int {
		if n == 0 {
			close(away)
			return 503
		}
		return 200
	}
	s.start(c, time.Hour)
	<-away
	s.keepAudit(e)
	s.mu.Lock()
	delete(s.table, "box")
	s.mu.Unlock()
	if got := s.spooled(); len(got) != 1 {
		t.Fatal(got)
	}
	other := s.guest("box") // another guest has its name by now
	s.record(other, "port.opened", nil)
	<-s.pauses
	var names []string
	for _, l := range c.take(2) {
		names = append(names, l.EventName)
	}
	if slices.Sort(names); !slices.Equal(names, []string{"carrel.audit.port.opened", "carrel.audit.review.applied"}) {
		t.Error(names)
	}
	s.settle(2)
	s.cancel()
	if got := s.spooled(); len(got) != 0 {
		t.Error("left behind:", got)
	}
}

// policy.yaml turns it on and off while the daemon runs, and says with which
// credentials; a value that cannot be had holds everything back.
func TestTelemetryConfigured(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	s.tell(taskEvent("box", 1))
	file := filepath.Join(s.opts.Place.Config, policyFile)
	token := filepath.Join(s.opts.Place.Config, "token")
	if err := os.WriteFile(file, []byte("version: 1\ntelemetry:\n  endpoint: "+c.URL+"\n  headers: {X-Tenant: one, X-Key: {file: "+token+"}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.telemetry.on() {
		t.Error("on by default")
	}
	s.telemetry.read()
	c.take(1)
	c.mu.Lock()
	h := c.heads[0]
	c.mu.Unlock()
	if h.Get("X-Key") != "hunter2" || h.Get("X-Tenant") != "one" {
		t.Error(h)
	}
	s.telemetry.use(&policy.File{})
	if s.telemetry.on() {
		t.Error("it cannot be turned off")
	}
	for what, conf := range map[string]policy.Telemetry{
		"a file that is not there":   {Headers: []policy.TelemetryHeader{{Name: "A", File: token + "x"}}},
		"a secret that is not there": {Secret: "none"},
	} {
		r := httptest.NewRequest("POST", "https://a.example/v1/logs", nil)
		if err := s.telemetry.header(r, conf); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.secrets.Set(t.Context(), "key", &api.SecretDefinition{Hosts: []string{"a.example"}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"POST"}, Paths: []string{"/v1/*"}}, []byte("hunter2hunter2")); err != nil {
		t.Fatal(err)
	}
	s.telemetry.secretsChanged()
	for to, want := range map[string]string{"https://a.example/v1/logs": "Bearer hunter2hunter2", "https://b.example/v1/logs": "", "http://a.example/v1/logs": "", "https://a.example:444/v1/logs": ""} {
		r := httptest.NewRequest("POST", to, nil)
		err := s.telemetry.header(r, policy.Telemetry{Secret: "key"})
		if got := r.Header.Get("Authorization"); got != want || (err == nil) != (want != "") || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %q, %v", to, got, err)
		}
	}
	if err := os.WriteFile(token, []byte("two\nlines"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := headerFile(token); err == nil || strings.Contains(err.Error(), "lines\"") {
		t.Error(err)
	}
}

// Every kind of event has its name, and none is left out.
func TestTelemetryKinds(t *testing.T) {
	kinds := (&api.Event{}).ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
	seen := map[string]bool{}
	for i := range kinds.Len() {
		ev := (&api.Event{Guest: "a", Sequence: 5}).ProtoReflect()
		ev.Set(kinds.Get(i), ev.NewField(kinds.Get(i)))
		r := eventRecord(ev.Interface().(*api.Event))
		if r.Name == "carrel.event" || seen[r.Name] || r.Body == "" || r.Time.Before(time.Unix(0, 0)) {
			t.Errorf("%s: %+v", kinds.Get(i).Name(), r)
		}
		seen[r.Name] = true
	}
	b, err := os.ReadFile("../../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range seen {
		if !strings.Contains(string(b), "`"+name+"`") {
			t.Errorf("docs/telemetry.md does not have %s", name)
		}
	}
	d := &Daemon{table: map[string]*entry{}, events: newEvents(&memoryEvents{max: 1})}
	x := newExporter(d)
	x.tally.tasks, x.tally.verdicts, x.told.dropped = map[string]int64{"a": 1}, map[string]int64{"a": 1}, map[string]int64{"a": 1}
	for _, m := range x.figures() {
		if !strings.Contains(string(b), "`"+m.Name+"`") {
			t.Errorf("docs/telemetry.md does not have %s", m.Name)
		}
	}
	all := []telemetry.Record{eventRecord(taskEvent("a", 1)), eventRecord(&api.Event{Kind: &api.Event_Egress{Egress: &api.EgressEvent{
		Kind: api.EgressEventKind_EGRESS_EVENT_KIND_END, Task: "t", Host: "h", Port: 1, Method: "m", Path: "p", Address: "a", Secret: "s", Question: "q", Verdict: &api.EgressVerdict{Reason: "r", Rule: &api.EgressRule{Origin: "o"}}}}}),
		eventRecord(&api.Event{Kind: &api.Event_Changed{Changed: &api.Guest{Cause: "c", Driver: "d", Boundary: "b", Ports: []*api.Port{{}}, Spec: &api.GuestSpec{Image: "i", Shares: []*api.Share{{}}}}}})}
	for _, r := range all {
		for _, a := range r.Attrs {
			if !strings.Contains(string(b), "`"+a.Key+"`") {
				t.Errorf("docs/telemetry.md does not have %s", a.Key)
			}
		}
	}
}
