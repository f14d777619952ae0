package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// cases are the attacks, and the controls among them.
func (b *besideSRT) cases() []srtCase {
	const secret = "word-that-leaves" // a label of a name that nobody else asks for
	origin, second := egresstest.Origin, egresstest.Second
	literal, attackerAddr := b.net.Host(origin).Addrs[0], b.net.Host(egresstest.Attacker).Addrs[0]
	// A server of the world got a request.
	served := func(host string) func(string) bool {
		return func(string) bool { return len(b.net.Host(host).Requests()) > 0 }
	}
	// A server of the world was connected to, on any port, whatever it was asked.
	reached := func(host string) func(string) bool {
		return func(string) bool { return b.net.Host(host).Connections() > 0 }
	}
	canary := func(string) bool { return len(b.net.Canary.Connections()) > 0 }
	asked := func(name string) func(string) bool {
		return func(string) bool { return b.net.DNS.Asked(name) > 0 }
	}
	flow := func(proto, addr string) func(string) bool {
		return func(string) bool {
			for _, f := range b.net.Tap.Flows() {
				if f.Proto == proto && f.To.String() == addr {
					return true
				}
			}
			return false
		}
	}
	exists := func(file string) func(string) bool {
		return func(string) bool { _, err := os.Lstat(file); return err == nil }
	}
	changed := func(file string) func(string) bool {
		return func(string) bool { text, err := os.ReadFile(file); return err == nil && string(text) != "{}\n" }
	}
	says := func(word string) func(string) bool {
		return func(out string) bool { return strings.Contains(out, word) }
	}
	https := func(host string) []string { return []string{"https", host + ":443", host, host} }
	http := func(host string) []string { return []string{"http", host + ":80", host} }
	away := filepath.Join(b.beside, "new")
	port := b.net.Canary.Port

	return []srtCase{
		{what: "HTTPS to an allowed name", args: https(origin), succeeded: served(origin), control: true},
		{what: "HTTP in clear to an allowed name", args: http(origin), succeeded: served(origin), control: true},
		{what: "a subdomain that a wildcard allows", args: https("a.wild.example.org"), succeeded: served(second), control: true},
		{what: "another port of a name that was allowed without one", args: []string{"https", origin + ":8443", origin, origin}, succeeded: reached(origin)},
		{what: "another port of a name that was allowed on 443", args: []string{"https", second + ":8443", second, second}, succeeded: reached(second)},
		{what: "HTTPS to a name that nothing allows", args: https(egresstest.Attacker), succeeded: reached(egresstest.Attacker)},
		{what: "HTTP in clear to a name that nothing allows", args: http(egresstest.Attacker), succeeded: reached(egresstest.Attacker)},
		{what: "a subdomain that is denied beneath the wildcard", args: https("denied.wild.example.org"), succeeded: reached(second)},
		{what: "the wildcard's own domain", args: https("wild.example.org"), succeeded: reached(second)},
		{what: "the address of an allowed name", args: []string{"https", net.JoinHostPort(literal, "443"), origin, origin}, succeeded: reached(origin)},
		{what: "the address of a host that nothing allows", args: []string{"http", net.JoinHostPort(attackerAddr, "80"), origin}, succeeded: reached(egresstest.Attacker)},
		{what: "another name in the TLS handshake (SNI)", args: []string{"https", egresstest.CDN + ":443", egresstest.Tenant, egresstest.Tenant}, succeeded: reached(egresstest.CDN)},
		{what: "another name inside TLS (domain fronting)", args: []string{"https", egresstest.CDN + ":443", egresstest.CDN, egresstest.Tenant}, succeeded: served(egresstest.CDN)},
		{what: "another name in a clear request", args: []string{"http", origin + ":80", egresstest.Tenant}, succeeded: func(string) bool {
			for _, r := range b.net.Host(origin).Requests() {
				if r.Host == egresstest.Tenant {
					return true
				}
			}
			return false
		}},
		{what: "an allowed name that leads to the host's loopback", args: []string{"http", "rebind.wild.example.org:" + port, "rebind.wild.example.org"}, succeeded: canary},
		{what: "an allowed name that leads to the metadata address", args: http("metadata.wild.example.org"), succeeded: reached(egresstest.MetadataHost)},
		{what: "an allowed name that leads to a private address", args: http("inner.wild.example.org"), succeeded: reached(egresstest.Inner)},
		{what: "an allowed name that leads to an address of `deniedResolvedAddresses`", args: http("blocked.wild.example.org"), succeeded: reached(egresstest.Redirect)},
		{what: "a service on the host's loopback", args: []string{"http", "127.0.0.1:" + port, "localhost"}, succeeded: canary},
		{what: "the same as `localhost`", args: []string{"http", "localhost:" + port, "localhost"}, succeeded: canary},
		{what: "a service on the host's own address", args: []string{"http", egresstest.HostAddr + ":" + port, "localhost"}, succeeded: canary},
		{what: "a question to a name server of its own choice", args: []string{"dns", egresstest.PublicResolvers[0] + ":53", secret + ".example.net"}, succeeded: asked(secret + ".example.net")},
		{what: "a look-up of a name that nothing allows", args: []string{"lookup", secret + ".example.net"}, succeeded: asked(secret + ".example.net")},
		{what: "a datagram (UDP)", args: []string{"udp", attackerAddr + ":443"}, succeeded: flow("udp", attackerAddr)},
		{what: "ICMP", args: []string{"icmp", attackerAddr}, succeeded: flow("icmp", attackerAddr)},
		{what: "reading a file of the project", args: []string{"read", b.in("file")}, succeeded: says(srtProjectWord), control: true},
		{what: "reading what `denyRead` names: `~/.ssh`", args: []string{"read", filepath.Join(b.home, ".ssh/id")}, succeeded: says(srtKeyWord)},
		{what: "reading what `denyRead` names, in the project", args: []string{"read", b.in("private/key")}, succeeded: says(srtPrivateWord)},
		{what: "reading another file of the home directory", args: []string{"read", filepath.Join(b.home, "notes")}, succeeded: says(srtNotesWord)},
		{what: "writing a file of the project", args: []string{"write", b.in("new")}, succeeded: exists(b.in("new")), control: true},
		{what: "writing beside the project", args: []string{"write", away}, succeeded: exists(away)},
		{what: "writing beside the project, through a link in it", args: []string{"write", b.in("link")}, succeeded: exists(filepath.Join(b.beside, "through"))},
		{what: "writing `~/.bashrc`", args: []string{"write", filepath.Join(b.home, ".bashrc")}, succeeded: exists(filepath.Join(b.home, ".bashrc"))},
		{what: "writing what `denyWrite` names, in the project", args: []string{"write", b.in("locked/new")}, succeeded: exists(b.in("locked/new"))},
		{what: "writing the project's `.git/hooks`", args: []string{"write", b.in(".git/hooks/pre-commit")}, succeeded: exists(b.in(".git/hooks/pre-commit"))},
		{what: "the same, when `.git` was renamed and made again", args: []string{"replace", b.in(".git"), b.in("away"), b.in(".git/hooks/pre-commit")}, succeeded: exists(b.in(".git/hooks/pre-commit"))},
		{what: "writing `.git/hooks` where the project alone is shared, `rw`", args: []string{"write", b.in(".git/hooks/pre-commit")}, succeeded: exists(b.in(".git/hooks/pre-commit")),
			shares: []string{b.project + ":" + b.project + ":rw"}},
		{what: "writing the project's `.mcp.json`, one of srt's own list", args: []string{"write", b.in(".mcp.json")}, succeeded: changed(b.in(".mcp.json"))},
		{what: "a Unix socket of the host", args: []string{"unix", b.sockets[1]}, succeeded: b.connected},
		{what: "a Unix socket of the host, in the project", args: []string{"unix", b.sockets[0]}, succeeded: b.connected},
		{what: "the same, where the project is shared `ro`", args: []string{"unix", b.sockets[0]}, succeeded: b.connected,
			shares: []string{b.project + ":" + b.project + ":ro"}},
		{what: "the same, where the project is in review", args: []string{"unix", b.sockets[0]}, succeeded: b.connected, shares: []string{b.project + ":" + b.project}},
		{what: "a Unix socket of the host, abstract", args: []string{"unix", b.sockets[2]}, succeeded: b.connected},
		{what: "seeing a process of the host", args: []string{"ps"}, succeeded: says(srtProcessWord)},
		{what: "reading a variable of whoever ran it", args: []string{"env"}, succeeded: says(srtEnvWord)},
	}
}
