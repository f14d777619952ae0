package main

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
)

func TestParsePublish(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80": "127.0.0.1:8080 80", "0:80": "127.0.0.1:0 80", "0.0.0.0:8080:80": "0.0.0.0:8080 80", "[::1]:8080:80": "[::1]:8080 80",
	} {
		p, err := parsePublish(in)
		if err != nil || hostAddress(p)+" "+joinNumbers([]uint32{p.GuestPort}) != want {
			t.Errorf("%q: %v %v", in, p, err)
		}
	}
	for _, in := range []string{"", "80", ":80", "80:", "1:0", "65536:1", "1:65536", "x:1:2", "localhost:1:2", "1:2:3:4"} {
		if p, err := parsePublish(in); err == nil {
			t.Errorf("%q: %v", in, p)
		}
	}
}

// What comes from a guest is one line, whatever it holds, and the command that
// would change it is whole.
func TestEventText(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local))
	deny := &api.EgressEvent{
		Time: at, Kind: api.EgressEventKind_EGRESS_EVENT_KIND_REQUEST, Task: "01JD8Q8ZV6Q2W7KXS2M0T4RBNE", Host: "a.example", Port: 443,
		Method: "POST", Path: "/x\x1b[31m\n" + strings.Repeat("y", 300),
		Verdict: &api.EgressVerdict{Action: api.EgressAction_EGRESS_ACTION_DENY, Reason: "No rule\u202e allows it.", Cure: "carrel allow box a.example --path /x"},
	}
	got := eventText(deny, 80)
	lines := strings.Split(got, "\n")
	if len(lines) != 3 || lines[2] != "" || strings.ContainsAny(got, "\x1b\u202e") || len([]rune(lines[0])) > 80 {
		t.Errorf("%q", got)
	}
	if !strings.HasPrefix(lines[0], "03:04:05  T4RBNE  deny   a.example:443  POST /x\\x1b[31m\\n") || lines[1] != strings.Repeat(" ", 18)+"allow it: carrel allow box a.example --path /x" {
		t.Errorf("%q", lines)
	}
	end := &api.EgressEvent{
		Time: at, Kind: api.EgressEventKind_EGRESS_EVENT_KIND_END, Host: "2001:db8::1", Port: 22, BytesUp: 2048, BytesDown: -1, DurationNanos: int64(1500 * time.Millisecond),
		Verdict: &api.EgressVerdict{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Rule: &api.EgressRule{Origin: "policy.yaml:3"}},
	}
	if got := eventText(end, 0); got != "03:04:05  -       end    [2001:db8::1]:22  policy.yaml:3  2.0 KiB up, 0 B down, 1.5s\n" {
		t.Errorf("%q", got)
	}
	missed := &api.EgressEvent{Time: at, Verdict: &api.EgressVerdict{Reason: "7 events are not shown"}}
	if got := eventText(missed, 80); got != "7 events are not shown\n" {
		t.Errorf("%q", got)
	}
}

func TestRuleWord(t *testing.T) {
	allow, deny := api.EgressAction_EGRESS_ACTION_ALLOW, api.EgressAction_EGRESS_ACTION_DENY
	for want, r := range map[string]*api.EgressRule{
		"a.example":                           {Action: allow, Host: "a.example"},
		"a.example:80,8080":                   {Action: allow, Host: "a.example", Ports: []uint32{80, 8080}},
		"[::1]:22":                            {Action: allow, Host: "::1", Ports: []uint32{22}},
		"a.example (every port)":              {Action: deny, Host: "a.example"},
		"a.example GET /v1/** with secret s1": {Action: allow, Host: "a.example", Methods: []string{"GET"}, Paths: []string{"/v1/**"}, Secret: "s1"},
	} {
		if got := ruleWord(r); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
