package main

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/audit"
)

// A guest that is refused without end cannot push other records out of its audit
// log: not by one refusal again and again, and not by ever new ones. What was
// allowed is recorded whatever happens, and no refusal is uncounted.
func TestRefusalFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written, counted, allowed := 0, 0, 0
		r := newRepeats(func(kind string, fields any) {
			switch f := fields.(type) {
			case repeated:
				if counted += f.More; kind != "egress.repeated" || f.Reason == "" || f.Seconds != 10 {
					t.Errorf("%s %+v", kind, f)
				}
				written++
			case *api.EgressEvent:
				if f.Verdict.Action == api.EgressAction_EGRESS_ACTION_ALLOW {
					allowed++
					return
				}
				counted++
				written++
			}
		})
		event := func(action api.EgressAction, host string) {
			r.event(&api.EgressEvent{Kind: api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT, Task: "t", Host: host, Port: 443, Verdict: &api.EgressVerdict{Action: action, Reason: "No rule allows it."}})
		}
		const deny, seconds, each = api.EgressAction_EGRESS_ACTION_DENY, 600, 500
		event(deny, "first.example")
		if written != 1 {
			t.Error("control: the first refusal is not recorded at once")
		}
		n := 1
		for s := range seconds {
			for i := range each {
				host := "same.example"
				if i%2 == 0 {
					host = fmt.Sprintf("%d-%d.example", s, i)
				}
				event(deny, host)
				n++
			}
			event(api.EgressAction_EGRESS_ACTION_ALLOW, "good.example")
			time.Sleep(time.Second)
		}
		r.close()
		if counted != n {
			t.Errorf("%d refusals are on record, there were %d", counted, n)
		}
		if allowed != seconds {
			t.Errorf("%d of %d allowed connections are on record", allowed, seconds)
		}
		if most := refusalBurst + 3*seconds; written > most {
			t.Errorf("%d refusals wrote %d records, more than %d", n, written, most)
		}
		t.Logf("%d refusals in %d s wrote %d records", n, seconds, written)
		event(deny, "late.example")
		if counted != n+1 {
			t.Error("a refusal after the end is lost")
		}
	})
}

// The numbers are in the log, in the chain.
func TestRefusalsAreCounted(t *testing.T) {
	dir := t.TempDir()
	rec, err := openRecord(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		rec.event(&api.EgressEvent{Kind: api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT, Host: "no.example", Port: 443,
			Verdict: &api.EgressVerdict{Action: api.EgressAction_EGRESS_ACTION_DENY, Reason: "No rule allows no.example:443."}})
	}
	rec.close()
	rep, err := audit.Verify(dir)
	if err != nil || !rep.Intact || rep.Records != 2 {
		t.Errorf("%+v %v", rep, err)
	}
	if log := read(t, dir+"/audit.jsonl"); !strings.Contains(log, `"kind":"egress.repeated"`) || !strings.Contains(log, `"more":99,`) {
		t.Error(log)
	}
}
