package policy

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"example.org":               "example.org",
		"EXAMPLE.Org":               "example.org",
		"example.org.":              "example.org",
		"localhost":                 "localhost",
		"a-b.c--d.r3---sn.example":  "a-b.c--d.r3---sn.example",
		"_dmarc.my_bucket.example":  "_dmarc.my_bucket.example",
		"bücher.example":            "xn--bcher-kva.example",
		"xn--bcher-kva.example":     "xn--bcher-kva.example",
		"XN--BCHER-KVA.example":     "xn--bcher-kva.example",
		"123.example":               "123.example",
		"1.2.3.4":                   "1.2.3.4",
		"::ffff:1.2.3.4":            "1.2.3.4",
		"::FFFF:102:304":            "1.2.3.4",
		"2001:DB8:0:0::1":           "2001:db8::1",
		"::1":                       "::1",
		strings.Repeat("a", 63):     strings.Repeat("a", 63),
		strings.Repeat("a.", 127):   strings.TrimSuffix(strings.Repeat("a.", 127), "."),
		"1.2.3.4.example":           "1.2.3.4.example",
		"0x7f.example":              "0x7f.example",
		"deadbeef":                  "deadbeef",
		"faß.example":               "xn--fa-hia.example",
		"xn--zckzah.xn--zckzah":     "xn--zckzah.xn--zckzah",
		"registry.npmjs.org":        "registry.npmjs.org",
		"host.carrel.internal":      HostName,
		"sub.host.carrel.internal.": "sub.host.carrel.internal",
	} {
		h, err := ParseHost(in)
		if err != nil || h.String() != want {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", in, h, err, want)
		}
		again, err := ParseHost(h.String())
		if err != nil || again != h {
			t.Errorf("%q is not canonical: %v %v", h, again, err)
		}
	}
}

// E02: NUL, control bytes and all that another parser would read differently.
// TestParseHost is the control.
func TestE02OddHosts(t *testing.T) {
	odd := []string{
		"", ".", "..", ".example.org", "example..org", "example.org..", "-a.example", "a-.example", "a.-", "a b.example",
		"example.org:443", "[::1]", "[example.org]", "[1.2.3.4]", "::1%lo", "fe80::1%25eth0", "::1]", "1.2.3.4:80",
		"127.1", "127.0.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.01", "1.2.3.4.", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.0x4", "0x", "a.0x", "a.0", "1e3.1",
		"a.example_", "my_host", "１２７.0.0.1", "exa\u200bmple.org", "example。org", "ｅxample.org", "BÜCHER.example", "\u212a.example", "ﬁ.example", "xn--a.example", "xn--.example", "xn--example-.org", "xn--bcher-kvA1.example", "xn--ls8h.example_",
		"a\xff.example", "\xc0\xae.example", "ex\u202eample.org", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "aa", strings.Repeat("a", 5000),
		"https://example.org", "user@example.org", "*.example.org", "*", "例え。テスト", "a\u00ad.example", "a\u200d.example",
	}
	for _, c := range "\x00\r\n\t %@#?/\\\"'<>`|^{}~!$&()*+,;=\x7f" {
		odd = append(odd, "attacker"+string(c)+".google.com", string(c)+"google.com", "google.com"+string(c))
	}
	odd = append(odd, "attacker%00.google.com")
	for _, s := range odd {
		if h, err := ParseHost(s); err == nil {
			t.Errorf("ParseHost(%q) = %q", s, h)
		} else if h != (Host{}) {
			t.Errorf("ParseHost(%q) is refused but returns %q", s, h)
		} else if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			t.Errorf("ParseHost(%q): the error has control characters: %q", s, err)
		}
	}
}

func TestParseDestination(t *testing.T) {
	for in, want := range map[string]string{
		"example.org": "example.org:443", "example.org:80": "example.org:80", "Example.org.:8443": "example.org:8443",
		"1.2.3.4:22": "1.2.3.4:22", "[2001:db8::1]:22": "[2001:db8::1]:22", "[2001:db8::1]": "[2001:db8::1]:443", "2001:db8::1": "[2001:db8::1]:443",
		"[::ffff:1.2.3.4]:22": "1.2.3.4:22",
	} {
		if d, err := ParseDestination(in, 443); err != nil || d.String() != want {
			t.Errorf("ParseDestination(%q) = %v, %v; want %s", in, d, err, want)
		}
	}
	for _, in := range []string{"", ":80", "example.org:", "example.org:0", "example.org:65536", "example.org:+80", "example.org:080", "example.org: 80", "example.org:80:80",
		"[::1", "[::1]80", "[::1]:", "[example.org]:80", "[1.2.3.4]:80", "[fe80::1%25lo]:80", "example.org:http", "example.org:80/"} {
		if d, err := ParseDestination(in, 443); err == nil {
			t.Errorf("ParseDestination(%q) = %v", in, d)
		}
	}
	if d, err := ParseDestination("example.org", 0); err == nil {
		t.Errorf("a destination without a port: %v", d)
	}
}

// E10, as far as it is pure: three names agree exactly if they are one host, in
// whatever spelling; an absent one agrees with nothing.
func TestE10SameHost(t *testing.T) {
	spellings := map[string][]string{
		"allowed": {"allowed.example", "ALLOWED.example", "allowed.example."},
		"denied":  {"denied.example", "allowed.example.evil", "xallowed.example", "allowed-example"},
		"absent":  {"", "allowed.example\x00", "allowed.example:443", "allowed.example.."},
	}
	agree := 0
	for a, as := range spellings {
		for b, bs := range spellings {
			for c, cs := range spellings {
				for i := range as {
					connect, err1 := ParseHost(as[i])
					sni, err2 := ParseHost(bs[i%len(bs)])
					authority, err3 := ParseHost(cs[(i+1)%len(cs)])
					same := err1 == nil && err2 == nil && err3 == nil && connect == sni && sni == authority
					if want := a == "allowed" && b == a && c == a; want && !same {
						t.Errorf("%q, %q and %q are one host", as[i], bs[i%len(bs)], cs[(i+1)%len(cs)])
					} else if same && (a == "absent" || a != b || b != c) {
						t.Errorf("%q, %q and %q are not one host", as[i], bs[i%len(bs)], cs[(i+1)%len(cs)])
					} else if same {
						agree++
					}
				}
			}
		}
	}
	if agree == 0 {
		t.Error("control: nothing agrees")
	}
}

// FuzzParseHost compares with net/url and net/netip: what we accept, they read
// back as the same host, and what netip reads as an address is one for us.
func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"example.org", "1.2.3.4", "::1", "::ffff:1.2.3.4", "xn--bcher-kva.example", "bücher.example", "127.1", "0x7f.1", "a_b.c", "example.org.", "fe80::1%lo", "1.2.3.4.", "\u212a.a", "a\x00.b", "１.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHost(s)
		a, aerr := netip.ParseAddr(s)
		if err != nil {
			if h != (Host{}) {
				t.Fatalf("%q is refused, but a host comes back: %q", s, h)
			}
			if aerr == nil && a.Zone() == "" {
				t.Fatalf("netip reads %q as %v, and it is refused: %v", s, a, err)
			}
			return
		}
		got, is := h.Addr()
		if is != (aerr == nil) || is && got != a.Unmap() {
			t.Fatalf("%q is %v for netip and %v for us", s, a, h)
		}
		if b, err := netip.ParseAddr(h.String()); (err == nil) != is {
			t.Fatalf("%q becomes %q, which netip reads as %v", s, h, b)
		}
		if again, err := ParseHost(h.String()); err != nil || again != h {
			t.Fatalf("%q becomes %q, which becomes %q, %v", s, h, again, err)
		}
		d := Destination{Host: h, Port: 443}
		u, err := url.Parse("https://" + d.String() + "/")
		if err != nil {
			t.Fatalf("net/url does not read %s: %v", d, err)
		}
		if u.Hostname() != h.String() || u.Port() != "443" || u.User != nil || u.Path != "/" {
			t.Fatalf("%s is %q, %q, %q for net/url", d, u.Hostname(), u.Port(), u.Path)
		}
		if back, err := ParseDestination(d.String(), 0); err != nil || back != d {
			t.Fatalf("%s becomes %v, %v", d, back, err)
		}
		for _, c := range []byte(h.String()) {
			if c <= ' ' || c >= 0x7f || strings.IndexByte(`%@#?/\*"'<>[]`, c) >= 0 {
				t.Fatalf("%q holds %q", h, c)
			}
		}
	})
}
