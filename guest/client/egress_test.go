package client

import "testing"

func TestParseHostPort(t *testing.T) {
	for in, want := range map[string]struct {
		host string
		port uint32
	}{
		"example.org": {"example.org", 0}, "example.org:8443": {"example.org", 8443}, "*.example.org": {"*.example.org", 0},
		"*": {"*", 0}, "*:80": {"*", 80}, "192.0.2.7": {"192.0.2.7", 0}, "192.0.2.7:22": {"192.0.2.7", 22},
		"2001:db8::1": {"2001:db8::1", 0}, "[2001:db8::1]": {"2001:db8::1", 0}, "[2001:db8::1]:443": {"2001:db8::1", 443},
		"::1": {"::1", 0},
	} {
		host, port, err := ParseHostPort(in)
		if err != nil || host != want.host || port != want.port {
			t.Errorf("%q: %q %d %v", in, host, port, err)
		}
	}
	for _, in := range []string{"", ":80", "a:", "a:0", "a:65536", "a:-1", "a:x", "[::1", "[::1]x", "[::1]:", "https://a", "a/b", "u@a", "a b", "[]:80"} {
		if host, port, err := ParseHostPort(in); err == nil {
			t.Errorf("%q: %q %d", in, host, port)
		}
	}
}

func FuzzParseHostPort(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:2", "*", "::", "[", "]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := ParseHostPort(s)
		if err == nil && (host == "" || port > 65535) {
			t.Fatalf("%q became %q and %d", s, host, port)
		}
	})
}
