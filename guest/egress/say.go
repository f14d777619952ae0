package egress

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// event begins an event about a connection.
func (c *conn) event(kind api.EgressEventKind) *api.EgressEvent {
	return &api.EgressEvent{Kind: kind, Connection: c.id, Task: c.task, Host: c.s.hide(c.host), Port: c.port}
}

// end fills in what is known when something that began at a time has ended.
func ended(ev *api.EgressEvent, since time.Time, up, down int64) *api.EgressEvent {
	ev.BytesUp, ev.BytesDown, ev.DurationNanos = up, down, int64(time.Since(since))
	return ev
}

// verdict is the form in which a decision is told.
func (c *conn) verdict(v api.EgressAction, rule *api.EgressRule, inspected bool, reason, cure string) *api.EgressVerdict {
	out := &api.EgressVerdict{Action: v, Reason: text(c.s.hide(reason), maxReason), Cure: c.s.hide(cure), Inspected: inspected}
	if rule != nil {
		out.Rule = proto.Clone(rule).(*api.EgressRule)
	}
	return out
}

// sayAllowed records that the connection is let out. Once.
func (c *conn) sayAllowed(v policy.Verdict, a netip.Addr) {
	c.s.mu.Lock()
	said := c.said
	c.said = true
	c.s.mu.Unlock()
	if said {
		return
	}
	ev := c.event(api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT)
	if a.IsValid() {
		ev.Address = a.String()
	}
	ev.Verdict = c.verdict(api.EgressAction_EGRESS_ACTION_ALLOW, v.Rule, c.inspected, v.Reason, "")
	c.s.log.Info("egress", "task", c.task, "to", c.dest.String(), "verdict", "allow", "address", ev.Address, "inspected", c.inspected)
	c.s.events.add(ev)
}

// sayRefused records a refusal and tells the task.
func (c *conn) sayRefused(no *refusal) {
	ev := c.event(api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT)
	ev.Verdict = c.verdict(api.EgressAction_EGRESS_ACTION_DENY, no.rule, false, no.reason, no.cure)
	c.s.log.Info("egress", "task", c.task, "to", c.host, "port", c.port, "verdict", "deny", "reason", ev.Verdict.Reason)
	c.s.events.add(ev)
	c.s.told.tell(c.task, c.line(no))
}

// sayFailed records a connection that was allowed and came to nothing, and tells
// the task, whose tool often cannot say why.
func (c *conn) sayFailed(no *refusal) {
	c.sayAllowed(c.s.current().connect(c.dest, c.answered), netip.Addr{})
	c.s.log.Info("egress failed", "task", c.task, "to", c.dest.String(), "reason", text(c.s.hide(no.reason), maxReason))
	c.s.told.tell(c.task, c.line(no))
}
