package main

import (
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// upstreamPolicy has a rule of each kind for a host that has a way out of its
// own.
const upstreamPolicy = `version: 1
egress:
  rules:
    - allow: origin.example.com
      ports: [443, 80]
    - allow: second.example.com
      inspect: true
    - allow: other.example.com
    - allow: internal.example.com
    - allow: 93.184.216.9
`

// A guest on a host that reaches the internet through squid alone, as the
// daemon's HTTPS_PROXY, HTTP_PROXY and NO_PROXY say: what rules allow goes
// through it by name, what NO_PROXY names past it, and nothing else anywhere.
func TestEgressUpstream(t *testing.T) {
	if testing.Short() {
		t.Skip("the process wall needs a built image: make test runs it")
	}
	if !egresstest.Inside(t) {
		return
	}
	net := egresstest.New(t)
	squid := egresstest.StartSquid(t, "", egresstest.Resolver, 443)
	proxy := "http://" + egresstest.ProxyUser + ":" + egresstest.ProxyPassword + "@" + squid.Addr
	s := newSiteIn(t, net, "process", upstreamPolicy, "HTTPS_PROXY="+proxy, "HTTP_PROXY="+proxy, "NO_PROXY=other.example.com")
	s.box(t, s.guest, nil)
	get := func(url string) string { return s.sh(t, "curl -sS -m 120 "+url) }
	// The proxy writes a line when a tunnel through it has ended, which the guest does not
	// wait for.
	logged := func(before, want string) {
		t.Helper()
		eventually(t, "the proxy has logged "+want, func() bool { return strings.Contains(strings.TrimPrefix(squid.Log(), before), want) })
	}

	for url, want := range map[string]string{
		"https://" + egresstest.Origin + "/": "CONNECT " + egresstest.Origin + ":443",
		"https://" + egresstest.Second + "/": "CONNECT " + egresstest.Second + ":443",
		"http://" + egresstest.Origin + "/":  "GET http://" + egresstest.Origin + "/",
	} {
		before := squid.Log()
		if got := get(url); !strings.Contains(got, "this is ") {
			t.Errorf("%s: %s", url, got)
		}
		logged(before, "200 "+want+"\n")
	}
	if n := len(net.Host(egresstest.Second).Requests()); n != 1 {
		t.Errorf("%d inspected requests arrived through the proxy", n)
	}

	before := squid.Log()
	// What NO_PROXY names goes past it, with its address checked as always.
	if got := get("https://other.example.com/"); !strings.Contains(got, "this is other.example.com") {
		t.Errorf("NO_PROXY: %s", got)
	}
	// What no rule allows, and an address that one allows, do not get that far.
	for _, url := range []string{"https://" + egresstest.Attacker + "/", "http://" + egresstest.Attacker + "/", "https://93.184.216.9/"} {
		if got := get("-k " + url); strings.Contains(got, "this is") {
			t.Errorf("%s: %s", url, got)
		}
	}
	if now := strings.TrimPrefix(squid.Log(), before); now != "" {
		t.Errorf("the proxy was asked %q", now)
	}
	if e := s.denied(t, 0, "93.184.216.9", 443); e != nil && !strings.Contains(e.Verdict.Reason, "proxy") {
		t.Errorf("the address is refused with %q", e.Verdict.Reason)
	}
	// The address check is the proxy's now, and it makes none: what would be
	// refused for its private address arrives. That is said.
	if got := get("-k https://" + egresstest.Inner + "/"); !strings.Contains(got, "this is "+egresstest.Inner) {
		t.Errorf("%s: %s", egresstest.Inner, got)
	}
	text, status := s.carrel(t, "policy", "explain", s.guest)
	if status != 0 || !strings.Contains(text, "resolved by the proxy http://"+squid.Addr) || !strings.Contains(text, "the addresses behind them are not checked here") {
		t.Errorf("carrel policy explain: status %d\n%s", status, text)
	}
	t.Logf("carrel policy explain:\n%s", text)

	// The guest knows nothing of it, and the password is in none of our files.
	s.needles(t, "needles", egresstest.ProxyPassword)
	if got := s.root(t, "env | grep -i _proxy; /tools/plain scan /tools/needles"); !strings.HasPrefix(got, "looked at") || !strings.Contains(got, "found 0") {
		t.Errorf("in the guest: %s", got)
	}
	if strings.Contains(text, egresstest.ProxyPassword) {
		t.Error("carrel policy explain shows the proxy's password")
	}
	for _, form := range egresstest.Forms(egresstest.ProxyPassword) {
		s.grepHome(t, form)
	}

	// The same after the daemon was killed: the next one's variables are the same.
	s.kill()
	s.start()
	before = squid.Log()
	if got := get("https://" + egresstest.Origin + "/"); !strings.Contains(got, "this is") {
		t.Errorf("after the daemon was killed: %s", got)
	}
	logged(before, "200 CONNECT "+egresstest.Origin+":443\n")

	// Without the proxy there is no way past it.
	squid.Stop()
	net.Reset()
	if got := get("https://" + egresstest.Origin + "/"); strings.Contains(got, "this is") {
		t.Errorf("without the proxy: %s", got)
	}
	s.quiet(t)
	if qs := net.DNS.Queries(); len(qs) != 0 {
		t.Errorf("names were looked up here: %v", qs)
	}
	if got := get("https://other.example.com/"); !strings.Contains(got, "this is") {
		t.Errorf("control: NO_PROXY without the proxy: %s", got)
	}
}
