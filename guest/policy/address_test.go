package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

// E15: what a name that is allowed may resolve to. The public addresses are the
// control; so is the same address under a rule that names it.
func TestE15Addresses(t *testing.T) {
	own := addresses("192.168.7.7", "198.51.99.5", "2600:1:2::3", "100.64.9.9")
	name := mustEgress(t, r("allow example.org"))
	priv := mustEgress(t, r("allow example.org private"))
	d := to(t, "example.org")
	for _, s := range []string{"93.184.215.14", "::ffff:93.184.215.14", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "198.17.0.1", "198.20.0.1", "2606:4700::1111", "2600:1:2::4",
		"64:ff9b::1.1.1.1", "2002:101:101::1", "2001:200::1", "2001:0:101:101::fefe:fefe", "223.255.255.255"} {
		if err := name.Address(d, netip.MustParseAddr(s), own); err != nil {
			t.Errorf("control: %v", err)
		}
	}
	private := strings.Fields("10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 fd00::1 fc00::1 fdff::1 ::ffff:10.0.0.1 ::ffff:100.64.0.1")
	never := strings.Fields(`0.0.0.0 0.1.2.3 127.0.0.1 127.255.255.254 ::1 :: ::ffff:127.0.0.1 ::ffff:0.0.0.0 169.254.0.1 169.254.169.254 169.254.170.2 ::ffff:169.254.169.254 fe80::1 febf::1 fec0::1
		fd00:ec2::254 fd00:ec2::23 fd20:ce::254 192.0.0.192 100.100.100.200 ::ffff:100.100.100.200 168.63.129.16 fd00:42::42 fd00:c1::a9fe:a9fe
		192.0.0.1 192.0.0.171 192.0.2.1 198.51.100.1 203.0.113.9 198.18.0.1 198.19.255.255 192.88.99.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
		ff02::1 ff05::2 2001:db8::1 3fff::1 5f00::1 100::1 64:ff9b:1::1 64:ff9b::10.0.0.1 64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b::100.100.100.200
		::127.0.0.1 ::10.0.0.1 ::1.1.1.1 ::ffff:0:127.0.0.1 2002:7f00:1::1 2002:a00:1::1 2002:a9fe:a9fe:: 2001:0:7f00:1::1 2001:0:101:101::80ff:fffe 2001:0:101:101::f5ff:fffe 2600::200:5efe:10.0.0.1 2600::5efe:127.0.0.1 2001:2::1 2001:10::1 4000::1 8000::1
		192.168.7.7 ::ffff:192.168.7.7 198.51.99.5 64:ff9b::198.51.99.5 2002:c633:6305::1 2600::5efe:198.51.99.5 2600:1:2::3 100.64.9.9 fe80::1%eth0`)
	for _, s := range append(private, never...) {
		err := name.Address(d, netip.MustParseAddr(s), own)
		if err == nil {
			t.Errorf("example.org may lead to %s", s)
		} else if !strings.Contains(err.Error(), "must not lead to") {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range private {
		if err := priv.Address(d, netip.MustParseAddr(s), own); err != nil {
			t.Errorf("private: %v", err)
		}
	}
	for _, s := range never {
		if err := priv.Address(d, netip.MustParseAddr(s), own); err == nil {
			t.Errorf("private: example.org may lead to %s", s)
		}
	}
	if err := name.Address(d, netip.Addr{}, own); err == nil {
		t.Error("no address at all is allowed")
	}
	if err := priv.Address(to(t, "other.org"), netip.MustParseAddr("1.1.1.1"), own); err == nil {
		t.Error("an address for a name that no rule allows")
	}
	if err := priv.Address(to(t, "example.org:80"), netip.MustParseAddr("1.1.1.1"), own); err == nil {
		t.Error("an address for a port that no rule allows")
	}
}

// E16: what is only reached by its address, or by its one name.
func TestE16Literals(t *testing.T) {
	e := mustEgress(t, r("allow 127.0.0.1=80"), r("allow 10.0.0.5"), r("allow 169.254.169.254=80"), r("allow *=80,443 wide"), r("allow host.carrel.internal=8080"), r("deny 93.184.215.14"))
	own := addresses("10.0.0.5")
	for dest, a := range map[string]string{"127.0.0.1:80": "127.0.0.1", "10.0.0.5": "10.0.0.5", "[::ffff:10.0.0.5]": "10.0.0.5", "169.254.169.254:80": "::ffff:169.254.169.254", "host.carrel.internal:8080": "127.0.0.1", "x.example": "1.1.1.1"} {
		if err := e.Address(to(t, dest), netip.MustParseAddr(a), own); err != nil {
			t.Errorf("control: %v", err)
		}
	}
	for dest, a := range map[string]string{
		"127.0.0.1":                 "127.0.0.1", // another port
		"127.0.0.1:80":              "127.0.0.2",
		"127.0.0.2:80":              "127.0.0.2",
		"10.0.0.5":                  "10.0.0.6",
		"x.example":                 "10.0.0.5", // named, but not under this name
		"y.example:80":              "127.0.0.1",
		"host.carrel.internal:8080": "1.1.1.1",
		"host.carrel.internal:80":   "127.0.0.1",
		"host.carrel.internal":      "::1",
		"z.example":                 "93.184.215.14", // denied by its address
		"z.example:80":              "64:ff9b::93.184.215.14",
		"192.168.127.254:80":        "192.168.127.254",
	} {
		if err := e.Address(to(t, dest), netip.MustParseAddr(a), own); err == nil {
			t.Errorf("%s may lead to %s", dest, a)
		}
	}
	// A special address that is named by itself may be reached by a name, too; a
	// port or a question that is not its own rule's changes nothing.
	e = mustEgress(t, r("allow x.example=80,443"), r("allow 203.0.113.80"), r("allow 127.0.0.1"), r("allow 169.254.169.254"), r("allow 203.0.113.81 inspect"), r("ask 203.0.113.82"))
	if err := e.Address(to(t, "x.example"), netip.MustParseAddr("203.0.113.80"), nil); err != nil {
		t.Errorf("control: %v", err)
	}
	for _, c := range [][2]string{{"x.example:80", "203.0.113.80"}, {"x.example", "203.0.113.81"}, {"x.example", "203.0.113.82"}, {"x.example", "203.0.113.83"}, {"x.example", "127.0.0.1"}, {"x.example", "169.254.169.254"}} {
		if err := e.Address(to(t, c[0]), netip.MustParseAddr(c[1]), nil); err == nil {
			t.Errorf("%s may lead to %s", c[0], c[1])
		}
	}
	e = mustEgress(t, r("allow *=80,443 wide"), r("deny 93.184.215.14"))
	if v := e.Connect(to(t, "93.184.215.14")); v.Action != deny {
		t.Error(v)
	}
	// What denies an address denies what leads to it, under every name and literal.
	for _, c := range []struct{ allowed, denied, dest, a string }{
		{"allow host.carrel.internal=8080", "deny 127.0.0.1", "host.carrel.internal:8080", "127.0.0.1"},
		{"allow 64:ff9b::a00:1", "deny 10.0.0.1", "[64:ff9b::a00:1]", "64:ff9b::a00:1"},
	} {
		for _, rules := range [][]string{{c.allowed}, {c.allowed, c.denied}} {
			var all []*api.EgressRule
			for _, s := range rules {
				all = append(all, r(s))
			}
			if err := mustEgress(t, all...).Address(to(t, c.dest), netip.MustParseAddr(c.a), nil); (err == nil) != (len(rules) == 1) {
				t.Errorf("%v: %v", rules, err)
			}
		}
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://example.org":          "example.org:443 GET / false",
		"HTTPS://Example.org:8443/a?b": "example.org:8443 GET /a false",
		"http://example.org/a b#c":     "example.org:80 GET /a%20b true",
		"http://[::1]:8080/%2e":        "[::1]:8080 GET /%2e true",
		"example.org":                  "example.org:443   false",
		"example.org:22":               "example.org:22   false",
		"https://example.org//x":       "example.org:443 GET //x false",
	} {
		d, q, clear, err := ParseURL(in)
		got := d.String() + " " + q.Method + " " + q.Path + map[bool]string{true: " true", false: " false"}[clear]
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "ftp://x", "https://", "https://u:p@example.org/", "https://example.org:0/", "https://ex ample.org", "//example.org/", "example.org/path", "https:///x"} {
		if d, _, _, err := ParseURL(in); err == nil {
			t.Errorf("ParseURL(%q) = %v", in, d)
		}
	}
}

func TestRuleFromFlag(t *testing.T) {
	for in, want := range map[string]string{
		"example.org": "example.org []", "Example.org:8443": "example.org [8443]", "*.example.org:80": "*.example.org [80]", "*": "* []", "*:22": "* [22]", "[::1]:80": "::1 [80]", "example.org:443": "example.org [443]",
		"host.carrel.internal:443": "host.carrel.internal [443]",
	} {
		x, err := RuleFromFlag(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		got := strings.ReplaceAll(strings.Join([]string{x.Host, "["}, " "), "  ", " ")
		for _, p := range x.Ports {
			got += Destination{Port: uint16(p)}.String()[1:]
		}
		if got+"]" != want || x.Action != allow {
			t.Errorf("%s: %s], want %s", in, got, want)
		}
	}
	for _, in := range []string{"", "a*b.com", "*x", "https://x", "example.org:0", "*.org:x", "*.*.org", "a b"} {
		if x, err := RuleFromFlag(in); err == nil {
			t.Errorf("%q: %v", in, x)
		}
	}
}
