package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// A rule that asks: the connection waits, nothing leaves meanwhile, and the
// answer that a person gives on the command line decides about it: a no, a yes
// that counts once, one for this guest, and one for every guest.
func testEgressAsk(t *testing.T, s *site) {
	const other = "other.example.com"
	var asks []*api.EgressRule
	for _, h := range []string{other, egresstest.CDN, egresstest.Tenant} {
		asks = append(asks, &api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_ASK, Host: h, Ports: []uint32{80}})
	}
	s.change(t, asks, nil)
	file := filepath.Join(s.home, "config", "policy.yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if text, status := s.carrel(t, "deny", s.guest, egresstest.Tenant+":80"); status != 0 {
			t.Errorf("carrel deny: %s", text)
		}
		write(t, file, string(before))
		s.change(t, nil, asks)
		if text, status := s.carrel(t, "deny", s.guest, other+":80"); status != 0 { // takes the yes back
			t.Errorf("carrel deny: %s", text)
		}
	}()
	for _, x := range []struct{ host, answer, want string }{{other, "--once", "this is"}, {egresstest.CDN, "--deny", "403"}, {other, "--guest", "this is"}, {egresstest.Tenant, "--always", "this is"}} {
		host, url := x.host, "http://"+x.host+"/"
		since := s.last(t)
		s.net.Reset()
		got := make(chan string, 1)
		go func() {
			var out strings.Builder
			p, err := s.c.StartTask(t.Context(), client.Task{Guest: s.guest, Args: []string{"/tools/plain", "get", url}, Stdout: &out})
			if err == nil {
				err = p.Wait()
			}
			if err != nil {
				out.WriteString(err.Error())
			}
			got <- out.String()
		}()
		var q *api.EgressEvent
		eventually(t, "the question is put", func() bool {
			for _, e := range s.events(t) {
				if e.Sequence > since && e.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION {
					q = e
				}
			}
			return q != nil
		})
		if !strings.Contains(q.Verdict.Cure, "carrel egress "+s.guest+" --answer "+q.Question) || q.Host != host {
			t.Errorf("the question: %v", q)
		}
		if n := s.net.Host(host).Connections() + s.net.DNS.Asked(host); n != 0 {
			t.Errorf("before the answer to it, %s was looked up or reached", host)
		}
		if text, status := s.carrel(t, "egress", s.guest, "--answer", q.Question, x.answer); status != 0 {
			t.Fatalf("carrel egress --answer %s: status %d\n%s", x.answer, status, text)
		}
		select {
		case g := <-got:
			if !strings.Contains(g, x.want) {
				t.Errorf("after %s: %s", x.answer, g)
			}
		case <-time.After(patience):
			t.Fatalf("%s: the connection still waits", x.answer)
		}
	}
	// The answer for every guest stands in the user's file.
	if after, err := os.ReadFile(file); err != nil || strings.Contains(string(before), egresstest.Tenant) || !strings.Contains(string(after), egresstest.Tenant) {
		t.Errorf("after --always, %s: %v\n%s", file, err, after)
	}
	// The answer for this guest is a rule of it now: nobody is asked again.
	url := "http://" + other + "/"
	if got := s.plain(t, "get", url)[url]; !strings.Contains(got, "this is") {
		t.Errorf("after --guest: %s", got)
	}
	s.quiet(t, other, egresstest.Tenant)
}
