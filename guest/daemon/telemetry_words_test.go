package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	common "go.opentelemetry.io/proto/slim/otlp/common/v1"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/telemetry"
)

// What a guest can say goes to a receiver within bounds, and each attribute that
// holds a word of its is named in carrel.untrusted; it can give no record another
// name, another guest or another number, and none that cannot be sent.
func TestTelemetryGuestWords(t *testing.T) {
	s, c := newSending(t), newCollector(t)
	n := s.byHand(c)
	const mark = "owned"
	evil := mark + "\x1b]0;x\x07\r\n\u202e\x00\"}]},{\"eventName\":\"carrel.daemon.started\"" + strings.Repeat("x", 6<<10)
	all := []*api.Event{
		{Guest: "box", Kind: &api.Event_Task{Task: &api.Task{Id: "T1", Guest: "box", State: api.TaskState_TASK_STATE_INTERRUPTED, Spec: &api.TaskSpec{Argv: []string{"make"}}, Ending: &api.Ending{Status: 125, Cause: evil}}}},
		{Guest: "box", Kind: &api.Event_Changed{Changed: &api.Guest{Name: "box", State: api.GuestState_GUEST_STATE_STOPPED, Cause: evil, Spec: &api.GuestSpec{Image: "default"}}}},
		{Guest: "box", Kind: &api.Event_Egress{Egress: &api.EgressEvent{Kind: api.EgressEventKind_EGRESS_EVENT_KIND_REQUEST, Task: evil, Host: evil, Port: 443, Method: evil, Path: "/" + evil,
			Verdict: &api.EgressVerdict{Reason: evil}}}},
	}
	for _, ev := range all {
		s.tell(ev)
	}
	// A process that a guest took over writes its audit log: records of its own
	// making, and a line that is none.
	e := s.guest("box")
	s.record(e, mark, map[string]string{"x": evil})
	s.record(e, "port.opened", map[string]string{"x": strings.Repeat(evil, 12)})
	f, err := os.OpenFile(filepath.Join(s.auditDir(e.name), "audit.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("\xff\xfe " + mark + " \x1b[2J\n")
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	n.all()
	for more := true; more; {
		var wait any
		if more, wait = n.step(t.Context(), 0); len(c.records) == 0 {
			t.Fatal("nothing was sent: ", wait)
		}
	}
	marked, seen := 0, map[string]int{}
	for _, l := range c.take(len(c.records)) {
		seen[l.EventName]++
		holds := []string{}
		for _, a := range l.Attributes {
			for _, v := range strings2(a.Value) {
				if len(v) > telemetry.MaxValue {
					t.Errorf("%s: %s has %d bytes", l.EventName, a.Key, len(v))
				}
				if a.Key != "carrel.untrusted" && strings.Contains(v, mark) {
					holds = append(holds, a.Key)
				}
			}
		}
		body := l.Body.GetStringValue()
		if len(body) > telemetry.MaxBody || strings.ContainsFunc(body, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%s: a body of %d bytes, or not of printable ASCII: %.100q", l.EventName, len(body), body)
		}
		if strings.Contains(body, mark) {
			holds = append(holds, "body")
		}
		untrusted := strings2(attr(l, "carrel.untrusted"))
		for _, key := range holds {
			marked++
			if !slices.Contains(untrusted, key) {
				t.Errorf("%s: %s is the guest's word, and not named as such: %v", l.EventName, key, untrusted)
			}
		}
		if g := attr(l, "carrel.guest").GetStringValue(); g != "box" {
			t.Errorf("%s: of guest %q", l.EventName, g)
		}
	}
	if marked < 9 || seen["carrel.task"] != 1 || seen["carrel.guest"] != 1 || seen["carrel.egress"] != 1 || seen["carrel.daemon.started"] != 0 {
		t.Errorf("%d words of the guest arrived, in %v", marked, seen)
	}
	if s.telemetry.told.dropped["refused"] != 0 {
		t.Errorf("%v", s.telemetry.told.dropped)
	}
	t.Logf("records: %v", seen)
}

// strings2 are the words of an attribute's value.
func strings2(v *common.AnyValue) (out []string) {
	for _, x := range v.GetArrayValue().GetValues() {
		out = append(out, x.GetStringValue())
	}
	if s := v.GetStringValue(); s != "" {
		out = append(out, s)
	}
	return out
}
