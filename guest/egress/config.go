package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"sync"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

// config is what holds at one moment. It does not change, but for the rates.
type config struct {
	rules  *policy.Egress
	source *api.ConfigureEdgeRequest
	edge   *secret.Edge
	// proxy says which of the host's proxies leads to a URL; nil: none.
	proxy func(*url.URL) (*url.URL, error)
	// replaced is closed when another config holds.
	replaced chan struct{}

	mu    sync.Mutex
	rates map[*api.EgressRule]*rates
}

// rates slow the connections of one rule.
type rates struct{ up, down *rate.Limiter }

// compile checks all of a request and makes a config of it.
func compile(r *api.ConfigureEdgeRequest) (*config, error) {
	if r == nil {
		r = &api.ConfigureEdgeRequest{}
	}
	r = proto.Clone(r).(*api.ConfigureEdgeRequest)
	c := &config{source: r, replaced: make(chan struct{}), rates: map[*api.EgressRule]*rates{}}
	var err error
	if c.rules, err = policy.NewEgress(r.Rules); err != nil {
		return nil, err
	}
	if c.edge, err = secret.NewEdge(r.Secrets); err != nil {
		return nil, err
	}
	if c.proxy, err = proxies(r.Upstream); err != nil {
		return nil, err
	}
	return c, nil
}

// proxies reads the host's way out.
func proxies(u *api.EdgeUpstream) (func(*url.URL) (*url.URL, error), error) {
	if u.GetHttpProxy() == "" && u.GetHttpsProxy() == "" {
		return nil, nil
	}
	for name, v := range map[string]string{"https_proxy": u.HttpsProxy, "http_proxy": u.HttpProxy} {
		if v == "" {
			continue
		}
		// The value may hold a password: it is not repeated.
		p, err := parseProxy(v)
		if err != nil {
			return nil, fmt.Errorf("the host's %s: %w (write it as http://[USER:PASSWORD@]HOST:PORT)", name, err)
		}
		if p.Scheme != "http" && p.Scheme != "https" {
			return nil, fmt.Errorf("the host's %s is of a kind that is not supported (give an http:// or https:// proxy)", name)
		}
	}
	return (&httpproxy.Config{HTTPProxy: u.HttpProxy, HTTPSProxy: u.HttpsProxy, NoProxy: u.NoProxy}).ProxyFunc(), nil
}

// parseProxy takes the forms that curl does: the scheme may be missing.
func parseProxy(v string) (*url.URL, error) {
	if !strings.Contains(v, "://") {
		v = "http://" + v
	}
	p, err := url.Parse(v)
	if err != nil || p.Hostname() == "" {
		return nil, errors.New("it is not a proxy's URL")
	}
	return p, nil
}

// connect judges a connection. answered says that a question about it was
// answered with yes.
func (f *config) connect(d policy.Destination, answered bool) policy.Verdict {
	v := f.rules.Connect(d)
	if v.Action == api.EgressAction_EGRESS_ACTION_ASK && answered {
		v.Action = api.EgressAction_EGRESS_ACTION_ALLOW
	}
	return v
}

// request judges a request on a connection that connect allowed.
func (f *config) request(d policy.Destination, r policy.Request, answered bool) policy.Verdict {
	v := f.rules.Request(d, r)
	if v.Action == api.EgressAction_EGRESS_ACTION_ASK && answered {
		v.Action = api.EgressAction_EGRESS_ACTION_ALLOW
	}
	return v
}

func allowed(v policy.Verdict) bool { return v.Action == api.EgressAction_EGRESS_ACTION_ALLOW }

// slowed returns what slows a connection to which a verdict applies.
func (f *config) slowed(v policy.Verdict) []*rates {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*rates
	for _, r := range v.Rated {
		l := f.rates[r]
		if l == nil {
			// A quarter of a second may come at once, but no less than a small buffer
			// and no more than one of copyChunk.
			burst := int(min(max(r.Rate/4, 4<<10), copyChunk))
			l = &rates{up: rate.NewLimiter(rate.Limit(r.Rate), burst), down: rate.NewLimiter(rate.Limit(r.Rate), burst)}
			f.rates[r] = l
		}
		all = append(all, l)
	}
	return all
}

// current is what holds now.
func (s *Server) current() *config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conf
}

// Configure replaces rules, secrets and the host's way out in one step. When it
// returns, what the new rules do not cover is closed: closed says how many
// connections. Answers that were given are rules too, and are gone unless they
// are among the new ones. On an error all is as it was.
func (s *Server) Configure(r *api.ConfigureEdgeRequest) (closed int, err error) {
	f, err := compile(r)
	if err != nil {
		return 0, err
	}
	return s.replace(nil, f)
}

// replace puts a config in place of old (nil: of any).
func (s *Server) replace(old, f *config) (closed int, err error) {
	own, err := s.own.get()
	if err != nil {
		return 0, err
	}
	ends, err := s.swap(old, f, own)
	for c, why := range ends {
		if c.close(why) { // else it had ended, and has not left yet
			closed++
		}
	}
	return closed, err
}

// swap is replace under the lock; it says which connections have to end, and why.
func (s *Server) swap(old, f *config, own []netip.Addr) (map[*conn]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if old != nil && s.conf != old {
		return nil, errReplaced
	}
	close(s.conf.replaced)
	s.asks.forget()
	moved := !proto.Equal(s.conf.source.Upstream, f.source.Upstream)
	s.conf = f
	ends := map[*conn]string{}
	for c := range s.conns {
		why := c.uncoveredLocked(f, own)
		if why == "" && moved && c.granted {
			why = "the host's own way out has changed"
		}
		if why != "" {
			ends[c] = why
		}
	}
	return ends, nil
}

var errReplaced = errors.New("other rules were set meanwhile")

// uncoveredLocked says why a live connection may not go on under f, or "". What
// is still on its way to a decision meets f there.
func (c *conn) uncoveredLocked(f *config, own []netip.Addr) string {
	if !c.granted {
		return ""
	}
	v := f.connect(c.dest, c.answered)
	switch {
	case v.Action == api.EgressAction_EGRESS_ACTION_ASK:
		return "the rules have changed: this would be asked now"
	case !allowed(v):
		return "the rules have changed: " + v.Reason
	case v.Inspect && !c.inspected:
		return "the rules have changed: requests are judged one by one now"
	}
	for r := range c.live {
		if v := f.request(c.dest, *r, true); !allowed(v) {
			return "the rules have changed: " + v.Reason
		}
	}
	for _, a := range c.socks {
		if !a.IsValid() {
			continue
		}
		if err := f.rules.Address(c.dest, a, own); err != nil {
			return "the rules have changed: " + err.Error()
		}
	}
	c.slow.Store(new(f.slowed(v)))
	c.maxUp.Store(v.MaxUp)
	return ""
}
