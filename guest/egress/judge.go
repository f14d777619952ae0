package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

// maxPath bounds a path in an event, in bytes.
const maxPath = 1024

// leg makes what the inspector needs to serve this connection.
func (c *conn) leg(clear bool) *leg {
	l := &leg{
		dest: c.dest, up: &c.up, down: &c.down,
		secrets: func() *secret.Edge { return c.s.current().edge },
		tls: func() *tls.Config {
			return &tls.Config{RootCAs: c.s.roots, ServerName: c.dest.Host.String(), MinVersion: tls.VersionTLS12}
		},
		dial: func(ctx context.Context) (net.Conn, netip.Addr, error) {
			server, a, err := c.dial(ctx, clear)
			var no *refusal
			if errors.As(err, &no) {
				c.sayRefused(no)
			}
			if err != nil {
				return nil, a, err
			}
			return &legConn{Conn: server, c: c}, a, nil
		},
		judge: c.judge,
		note: func(r policy.Request, reason string) {
			c.sayRequest(r, &judged{Verdict: policy.Verdict{Reason: reason}}, &refusal{reason: reason})
		},
		done: func(j judged, up, down int64) {
			c.s.mu.Lock()
			delete(c.live, j.live)
			c.s.mu.Unlock()
			ev := ended(c.request(api.EgressEventKind_EGRESS_EVENT_KIND_END, j.req), j.started, up, down)
			ev.Verdict = c.verdict(j.Verdict.Action, nil, true, "", "")
			ev.Secret = j.Secret
			c.s.events.add(ev)
		},
	}
	if clear {
		// An error shows again when the leg dials.
		l.proxy, _ = c.via(true)
	}
	return l
}

// judge decides on one request by the rules of this moment.
func (c *conn) judge(ctx context.Context, r policy.Request) judged {
	j := judged{req: r, started: time.Now()}
	answered := false
	for {
		f := c.s.current()
		j.Verdict = f.request(c.dest, r, answered)
		if c.s.hide(r.Path) != r.Path || c.s.hide(r.Method) != r.Method {
			// The rules' own words may have the beginning of it alone.
			j.Verdict.Reason = "What is asked for holds the value of a secret, and is not repeated."
		}
		if j.Verdict.Action == api.EgressAction_EGRESS_ACTION_ASK {
			yes, no := c.ask(ctx, f, j.Verdict, &r)
			if no != nil {
				j.Verdict.Action, j.Verdict.Reason = api.EgressAction_EGRESS_ACTION_DENY, no.reason
				c.sayRequest(r, &j, no)
				return j
			}
			answered = answered || yes
			continue
		}
		if !allowed(j.Verdict) {
			j.Verdict.Action = api.EgressAction_EGRESS_ACTION_DENY
			c.sayRequest(r, &j, c.deny(j.Verdict, &r))
			return j
		}
		if j.live = c.begin(f, r); j.live == nil {
			continue // the rules have changed meanwhile
		}
		j.Secret, j.MaxUp = j.Verdict.Secret, j.Verdict.MaxUp
		c.slowedBy(f.slowed(j.Verdict))
		ev := c.request(api.EgressEventKind_EGRESS_EVENT_KIND_REQUEST, r)
		ev.Verdict = c.verdict(j.Verdict.Action, j.Verdict.Rule, true, j.Verdict.Reason, "")
		ev.Secret = j.Secret
		c.s.log.Info("egress", "task", c.task, "to", c.dest.String(), "method", ev.Method, "path", ev.Path, "verdict", "allow", "secret", j.Secret)
		c.s.events.add(ev)
		return j
	}
}

// begin counts a request as under way, unless f holds no more.
func (c *conn) begin(f *config, r policy.Request) *policy.Request {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.conf != f {
		return nil
	}
	if c.live == nil {
		c.live = map[*policy.Request]struct{}{}
	}
	c.live[&r] = struct{}{}
	return &r
}

// slowedBy adds the rates of a request's rules to those of its connection, for
// good: what shares a connection shares its pace.
func (c *conn) slowedBy(more []*rates) {
	if len(more) == 0 {
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	all := slices.Clone(*c.slow.Load())
	for _, r := range more {
		if !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	c.slow.Store(&all)
}

func (c *conn) request(kind api.EgressEventKind, r policy.Request) *api.EgressEvent {
	ev := c.event(kind)
	ev.Method, ev.Path = text(c.s.hide(r.Method), 32), text(c.s.hide(r.Path), maxPath)
	return ev
}

// sayRequest records a refused request, tells the task, and puts the line for the
// tool in j.
func (c *conn) sayRequest(r policy.Request, j *judged, no *refusal) {
	ev := c.request(api.EgressEventKind_EGRESS_EVENT_KIND_REQUEST, r)
	ev.Verdict = c.verdict(api.EgressAction_EGRESS_ACTION_DENY, no.rule, true, no.reason, no.cure)
	c.s.log.Info("egress", "task", c.task, "to", c.dest.String(), "method", ev.Method, "path", ev.Path, "verdict", "deny", "reason", ev.Verdict.Reason)
	c.s.events.add(ev)
	j.Line = c.line(no)
	c.s.told.tell(c.task, j.Line)
}

// legConn leaves the connection's list when the inspector closes it.
type legConn struct {
	net.Conn
	c *conn
}

func (l *legConn) Close() error {
	l.c.drop(l.Conn)
	return nil
}

// CloseWrite ends what is sent to the server.
func (l *legConn) CloseWrite() error { return closeWrite(l.Conn) }

// counted is the guest's side of an inspected connection: what was read of it is
// read again, bytes are counted, and the rules' rates hold.
func (c *conn) counted(spoken []byte) net.Conn {
	return &counted{prefixed: prefixed{Conn: c.client, pre: spoken}, c: c}
}

type counted struct {
	prefixed
	c *conn
}

func (n *counted) Read(b []byte) (int, error) {
	slow := *n.c.slow.Load()
	for _, l := range slow {
		b = b[:min(len(b), l.up.Burst())]
	}
	got, err := n.prefixed.Read(b)
	n.c.moves(&n.c.up, int64(got))
	for _, l := range slow {
		if !n.wait(l.up, got) {
			return got, net.ErrClosed
		}
	}
	return got, err
}

func (n *counted) Write(b []byte) (int, error) {
	wrote := 0
	for {
		part := b[wrote:]
		slow := *n.c.slow.Load()
		for _, l := range slow {
			part = part[:min(len(part), l.down.Burst())]
		}
		for _, l := range slow {
			if !n.wait(l.down, len(part)) {
				return wrote, net.ErrClosed
			}
		}
		w, err := n.Conn.Write(part)
		n.c.moves(&n.c.down, int64(w))
		wrote += w
		if err != nil || wrote == len(b) {
			return wrote, err
		}
	}
}

// wait lets n bytes through at a rate; false: the connection ended meanwhile.
func (n *counted) wait(l *rate.Limiter, bytes int) bool {
	return l.WaitN(n.c.ctx, bytes) == nil
}
