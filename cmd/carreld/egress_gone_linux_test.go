package main

import (
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// F15: the host's network goes and comes, names cannot be resolved, or lead to
// somebody who answers for everybody. What is allowed fails meanwhile, by name,
// and works again afterwards; what is denied is denied all the time, also to a
// guest that starts without a network.
func testEgressNetworkGone(t *testing.T, s *site) {
	open, clear, shut := "https://"+egresstest.Origin+"/", "http://"+egresstest.Origin+"/", "http://"+egresstest.Attacker+"/"
	all := func() map[string]string { return s.plain(t, "get", open, clear, shut) }
	works := func(when string) {
		t.Helper()
		got := all()
		if !strings.Contains(got[open], "this is") || !strings.Contains(got[clear], "this is") || !strings.Contains(got[shut], "403") {
			t.Errorf("%s: %q", when, got)
		}
	}
	fails := func(when string) {
		t.Helper()
		s.net.Reset()
		got := all()
		if strings.Contains(got[open], "this is") || strings.Contains(got[clear], "this is") || !strings.Contains(got[shut], "403") {
			t.Errorf("%s: %q", when, got)
		}
		if n := s.net.Host(egresstest.Attacker).Connections(); n > 0 {
			t.Errorf("%s: the attacker was reached %d times", when, n)
		}
	}
	works("before")

	if err := s.net.Unplug(); err != nil {
		t.Fatal(err)
	}
	defer s.net.Plug()
	fails("no network")
	if s.boundary != "vm" { // where a second guest takes a minute
		s.box(t, "early", &api.EgressSpec{Rules: []*api.EgressRule{{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: egresstest.Origin, Ports: []uint32{80}}}})
		defer s.c.RemoveGuest(t.Context(), "early", true)
		box := s.guest
		s.guest = "early"
		if got := s.plain(t, "get", clear, shut); strings.Contains(got[clear], "this is") || !strings.Contains(got[shut], "403") {
			t.Errorf("a guest that started without a network: %q", got)
		}
		s.guest = box
	}
	if err := s.net.Plug(); err != nil {
		t.Fatal(err)
	}
	works("the network is back")
	if s.boundary != "vm" {
		box := s.guest
		s.guest = "early"
		if got := s.plain(t, "get", clear, shut); !strings.Contains(got[clear], "this is") || !strings.Contains(got[shut], "403") {
			t.Errorf("a guest that started without a network, with one: %q", got)
		}
		s.guest = box
	}

	// A portal answers for every name with an address of its own, and has no
	// certificate for any: nothing that is encrypted passes, whoever asks.
	portal := s.net.Host(egresstest.Attacker).Addrs
	addrs := s.net.Host(egresstest.Origin).Addrs
	s.net.DNS.Set(egresstest.Origin, portal...)
	s.net.Reset()
	if got := s.plain(t, "get", open)[open]; strings.Contains(got, "this is") || strings.Contains(got, "200") {
		t.Errorf("by a portal: %s", got)
	}
	// And an address that no name may lead to stays one.
	s.net.DNS.Set(egresstest.Origin, egresstest.Private)
	s.net.Reset()
	if got := s.plain(t, "get", clear)[clear]; strings.Contains(got, "this is") {
		t.Errorf("a name that leads inside: %s", got)
	}
	s.quiet(t)
	// No name is known any more.
	s.net.DNS.Set(egresstest.Origin)
	fails("no names")
	s.net.DNS.Set(egresstest.Origin, addrs...)
	works("names are back")
	if r := sh(t, s.c, s.guest, "", "echo still here"); r.out != "still here\n" {
		t.Errorf("%+v", r)
	}
}
