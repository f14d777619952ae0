package egresstest

import (
	"net/http"
	"testing"
)

// Names of the world's hosts.
const (
	Origin   = "origin.example.com"   // all that a web server can do
	Second   = "second.example.com"   // the same, at another address
	Echo     = "echo.example.com"     // says what it was sent
	Slow     = "slow.example.com"     // a byte at a time
	Redirect = "redirect.example.com" // 30x to wherever /to?url= says
	CDN      = "cdn.example.com"      // many tenants behind one certificate
	Tenant   = "tenant.example.com"   // one of them
	Inner    = "internal.example.com" // has a private address
	V6Only   = "v6only.example.com"
	Expired  = "expired.example.com" // its certificate has run out
	Foreign  = "foreign.example.com" // its certificate is of an unknown authority
	Wrong    = "wrong.example.com"   // its certificate is for another name
	Attacker = "attacker.example.net"
	// MetadataHost is what the metadata address is called in tests.
	MetadataHost = "metadata.example.net"
)

// everyHost makes the hosts. Those with the names of real services are found by
// tools and presets as they stand.
func (w *World) everyHost(t testing.TB) []*Host {
	w.Registry = newRegistry(t)
	w.Git = newGit(t, w.dir)
	w.API = &API{}
	web := origin()
	const net = "93.184.216."
	hosts := []*Host{
		{names: []string{Origin}, Addrs: []string{net + "10", "2606:2800:220:2::10"}, handler: web},
		{names: []string{Second}, Addrs: []string{net + "9"}, handler: web},
		{names: []string{Echo}, Addrs: []string{net + "11"}, handler: http.HandlerFunc(echo)},
		{names: []string{Slow}, Addrs: []string{net + "12"}, handler: http.HandlerFunc(slow)},
		{names: []string{Redirect}, Addrs: []string{net + "13"}, handler: web},
		{names: []string{CDN, Tenant}, Addrs: []string{net + "14"}, handler: web},
		{names: []string{Inner}, Addrs: []string{Private}, handler: web},
		{names: []string{V6Only}, Addrs: []string{"2606:2800:220:2::15"}, handler: web},
		{names: []string{Expired}, Addrs: []string{net + "16"}, handler: web, expired: true},
		{names: []string{Foreign}, Addrs: []string{net + "17"}, handler: web, foreign: true},
		{names: []string{"other.example.com"}, Addrs: []string{net + "18"}, handler: web},
		{names: []string{Attacker}, Addrs: []string{net + "66", "2606:2800:220:2::66"}, handler: web},
		{names: []string{MetadataHost}, Addrs: []string{Metadata}, handler: web},
		{names: []string{"api.anthropic.com"}, Addrs: []string{net + "20"}, handler: w.API.handler()},
		{names: []string{"github.com", "api.github.com"}, Addrs: []string{net + "21"}, handler: w.Git.handler()},
		{names: []string{"registry.npmjs.org"}, Addrs: []string{net + "30"}, handler: w.Registry.npm()},
		{names: []string{"proxy.golang.org", "sum.golang.org"}, Addrs: []string{net + "31"}, handler: w.Registry.goModules()},
		{names: []string{"deb.debian.org", "security.debian.org"}, Addrs: []string{net + "32"}, handler: w.Registry.debian()},
		{names: []string{"pypi.org", "files.pythonhosted.org"}, Addrs: []string{net + "33"}, handler: w.Registry.pypi()},
	}
	w.DNS.Set(Wrong, net+"18")
	return hosts
}
