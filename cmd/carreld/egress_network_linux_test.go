package main

import (
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// F15: the host's network goes, comes, is another one, has no name server, or has
// a portal in it. What is allowed fails meanwhile and works again by itself
// afterwards; what is not is refused each time, and nothing else leaves the host.
func testEgressNetworkChanges(t *testing.T, s *site) {
	net := s.net
	origin, second, attacker := "https://"+egresstest.Origin+"/", "https://"+egresstest.Second+"/", "https://"+egresstest.Attacker+"/"
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	get := func(url string) string { return s.sh(t, "curl -sS -m 60 "+url+" 2>&1") }
	refused := func(when string) {
		t.Helper()
		since := s.last(t)
		if got := get(attacker); strings.Contains(got, "this is") {
			t.Errorf("%s: %s", when, got)
		}
		if e := s.denied(t, since, egresstest.Attacker, 443); e == nil {
			t.Errorf("%s: what no rule allows is not on record as refused", when)
		}
	}
	works := func(when string) {
		t.Helper()
		for _, url := range []string{origin, second} {
			// A resolver's settings are read again every few seconds.
			began, got := time.Now(), ""
			eventually(t, when+": "+url+" is reached again", func() bool { got = get(url); return strings.Contains(got, "this is ") })
			t.Logf("%s: %s after %v", when, url, time.Since(began).Round(time.Millisecond))
		}
		refused(when)
	}
	fails := func(when string) {
		t.Helper()
		for _, url := range []string{origin, second} {
			began := time.Now()
			got := get(url)
			if strings.Contains(got, "this is ") {
				t.Errorf("%s: %s: %s", when, url, got)
			}
			t.Logf("%s: %s: %.120q after %v", when, url, strings.TrimSpace(got), time.Since(began).Round(time.Millisecond))
		}
		refused(when)
		// Nothing hangs of it: the daemon and the guest answer.
		if got := s.sh(t, "echo still here"); got != "still here\n" {
			t.Errorf("%s: the guest: %q", when, got)
		}
	}
	works("before")

	must("unplug", net.Unplug())
	fails("without a network")
	s.kill() // the next daemon starts without one
	s.start()
	fails("without a network, under another daemon")
	must("plug", net.Plug())
	works("with the network again")

	must("no resolver", net.SetResolver(""))
	eventually(t, "names are not resolved", func() bool { return !strings.Contains(get(origin), "this is") })
	fails("without a name server")
	must("another resolver", net.SetResolver(egresstest.PublicResolvers[0]))
	works("with another name server")
	var known []string
	for _, name := range []string{egresstest.Origin, egresstest.Second} {
		known = append(known, net.Host(name).Addrs...)
	}
	if f := net.Tap.Beyond(append(known, egresstest.PublicResolvers[0])...); len(f) > 0 {
		t.Errorf("with another name server packets left the host: %v", f)
	}
	must("the resolver of before", net.SetResolver(egresstest.Resolver))
	eventually(t, "the name server of before is asked again", func() bool {
		net.Tap.Reset()
		return strings.Contains(get(origin), "this is") && len(net.Tap.Beyond(known...)) == 0
	})

	// A portal: every name leads to it until somebody has logged in. TLS shows that
	// it is somebody else; by plain HTTP its page comes, as to anybody on the host.
	portal := net.Host("other.example.com")
	was := map[string][]string{}
	for _, name := range []string{egresstest.Origin, egresstest.Second} {
		was[name] = net.Host(name).Addrs
		net.DNS.Set(name, portal.Addrs...)
	}
	portal.Reset()
	eventually(t, "the portal is met", func() bool { return !strings.Contains(get(origin), "this is") })
	fails("behind a portal")
	if n := len(portal.Requests()); n != 0 {
		t.Errorf("behind a portal: %d requests were sent to it over TLS", n)
	}
	if got := get("http://" + egresstest.Origin + "/"); !strings.Contains(got, "this is") || len(portal.Requests()) == 0 {
		t.Errorf("control: the portal's page by plain HTTP: %s", got)
	}
	for name, addrs := range was {
		net.DNS.Set(name, addrs...)
	}
	works("after all")
	s.quiet(t, egresstest.Origin, egresstest.Second, "other.example.com")
}
