package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// egressService implements EgressService: it decides with policy, keeps what
// was changed, and tells a running guest's egress process.
type egressService struct{ d *Daemon }

// Explain implements EgressService.
func (s *egressService) Explain(_ context.Context, r *connect.Request[api.ExplainEgressRequest]) (*connect.Response[api.ExplainEgressResponse], error) {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	info, _, _ := e.get()
	if shut := e.shutWhy(); shut != "" { // whatever the rules are by now
		return connect.NewResponse(&api.ExplainEgressResponse{Notes: []string{shut}}), nil
	}
	x, err := s.d.decideAgain(info.Spec)
	if err != nil {
		return nil, refusal(err)
	}
	l, err := loadLive(s.d.dir(e))
	if err != nil {
		return nil, damaged(err)
	}
	known, err := s.d.secrets.List()
	if err != nil {
		return nil, refusal(err)
	}
	out := &api.ExplainEgressResponse{Rules: l.apply(x.grant.EgressRules()), Notes: x.notes(known)}
	if info.Steering == guest.NoWayOut {
		out.Notes = append([]string{info.Steering}, out.Notes...)
	}
	return connect.NewResponse(out), nil
}

func damaged(err error) error {
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeDataLoss, "damaged", cause, cure)
}

func badRule(err error) error {
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeInvalidArgument, "bad_rule", cause, cure)
}

// dir is a guest's folder.
func (d *Daemon) dir(e *entry) string { return filepath.Join(d.guests, e.name) }

// Change implements EgressService.
func (s *egressService) Change(ctx context.Context, r *connect.Request[api.ChangeEgressRequest]) (*connect.Response[api.ChangeEgressResponse], error) {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	if len(r.Msg.Add)+len(r.Msg.Remove) > maxLive {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_rule", fmt.Sprintf("%d rules in one request; %d are possible", len(r.Msg.Add)+len(r.Msg.Remove), maxLive), "")
	}
	for _, rule := range r.Msg.Add {
		if rule == nil {
			return nil, api.NewError(connect.CodeInvalidArgument, "bad_rule", "a rule is missing", "")
		}
		rule.Origin = originOf(rule, e.name)
		if err := policy.CheckRule(rule); err != nil {
			return nil, badRule(err)
		}
	}
	rules, closed, err := s.d.change(ctx, e, r.Msg.Add, r.Msg.Remove)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.ChangeEgressResponse{Rules: rules, Closed: int32(closed)}), nil
}

// originOf names the command that made a live rule.
func originOf(r *api.EgressRule, guest string) string {
	if r.Action == api.EgressAction_EGRESS_ACTION_ALLOW || r.Action == api.EgressAction_EGRESS_ACTION_ASK {
		return "carrel allow " + guest
	}
	return "carrel deny " + guest
}

// change applies changes to a guest's rules, keeps them, and returns when they
// hold. A guest that the egress process could not be told about is told so: its
// rules are then the old ones, in it and on the disk.
func (d *Daemon) change(ctx context.Context, e *entry, add, remove []*api.EgressRule) (rules []*api.EgressRule, closed int, err error) {
	e.rules.Lock()
	defer e.rules.Unlock()
	info, _, _ := e.get()
	if info.State == api.GuestState_GUEST_STATE_DAMAGED {
		return nil, 0, api.NewError(connect.CodeDataLoss, "damaged", info.Cause, "carrel rm --force "+e.name)
	}
	x, err := d.decideAgain(info.Spec)
	if err != nil {
		return nil, 0, refusal(err)
	}
	old, err := loadLive(d.dir(e))
	if err != nil {
		return nil, 0, damaged(err)
	}
	next := &live{added: append([]*api.EgressRule(nil), old.added...), removed: append([]*api.EgressRule(nil), old.removed...)}
	if err := next.change(add, remove); err != nil {
		return nil, 0, badRule(err)
	}
	rules = next.apply(x.grant.EgressRules())
	if _, err := policy.NewEgress(rules); err != nil {
		return nil, 0, badRule(err)
	}
	if err := next.save(d.dir(e)); err != nil {
		return nil, 0, api.NewError(connect.CodeInternal, "disk", "the rules cannot be kept: "+err.Error(), "make room on the disk that holds "+d.dir(e))
	}
	guest.Crash("egress: kept, before it holds")
	closed, err = d.configure(ctx, e, x)
	e.setShut("")
	if err != nil {
		if serr := old.save(d.dir(e)); serr != nil {
			d.log.Error("take back the rules", "guest", e.name, "error", serr)
		}
		return nil, 0, err
	}
	d.record(e, "egress.changed", &api.ChangeEgressRequest{Add: add, Remove: remove})
	for _, r := range add {
		d.log.Info("egress rule added", "guest", e.name, "action", r.Action, "host", r.Host, "origin", r.Origin)
	}
	for _, r := range remove {
		d.log.Info("egress rule removed", "guest", e.name, "action", r.Action, "host", r.Host)
	}
	return rules, closed, nil
}

// configure tells a guest's egress process what holds now. A guest that does
// not run is told when it starts.
func (d *Daemon) configure(ctx context.Context, e *entry, x *decision) (closed int, err error) {
	edge := e.edgeOf()
	if edge == nil {
		return 0, nil
	}
	conf, err := d.configuration(ctx, x, d.dir(e), true)
	if err != nil {
		return 0, refusal(err)
	}
	return d.tell(ctx, e, edge, conf)
}

func (d *Daemon) tell(ctx context.Context, e *entry, edge *edge, conf *api.ConfigureEdgeRequest) (closed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, edgeTime)
	defer cancel()
	res, err := edge.own.Configure(ctx, connect.NewRequest(conf))
	if err != nil {
		return 0, d.edgeError(e, err)
	}
	return int(res.Msg.Closed), nil
}

// edgeError passes an egress process's error on; one that says only that the
// connection broke becomes what it means.
func (d *Daemon) edgeError(e *entry, err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) && len(ce.Details()) > 0 {
		return ce
	}
	return api.NewError(connect.CodeUnavailable, "no_way_out", "the egress process of guest "+e.name+" does not answer: "+err.Error(), "carrel stop "+e.name+" and carrel start "+e.name)
}

// running returns the egress process of a guest that runs.
func (s *egressService) running(name string) (*entry, *edge, error) {
	e, err := s.d.find(name)
	if err != nil {
		return nil, nil, err
	}
	edge := e.edgeOf()
	if edge == nil {
		return nil, nil, notRunning(e.name)
	}
	return e, edge, nil
}

// Test implements EgressService.
func (s *egressService) Test(_ context.Context, r *connect.Request[api.TestEgressRequest]) (*connect.Response[api.TestEgressResponse], error) {
	dest, req, _, err := policy.ParseURL(r.Msg.Url)
	if err != nil {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_url", err.Error(), "https://HOST[:PORT]/PATH, or HOST:PORT")
	}
	if r.Msg.Method != "" {
		req.Method = r.Msg.Method
	}
	var rules []*api.EgressRule
	if r.Msg.Guest == "" {
		x, err := s.d.decide(&api.GuestSpec{Name: "new"})
		if err != nil {
			return nil, refusal(err)
		}
		rules = x.grant.EgressRules()
	} else {
		e, err := s.d.find(r.Msg.Guest)
		if err != nil {
			return nil, err
		}
		info, _, _ := e.get()
		x, err := s.d.decideAgain(info.Spec)
		if err != nil {
			return nil, refusal(err)
		}
		l, err := loadLive(s.d.dir(e))
		if err != nil {
			return nil, damaged(err)
		}
		rules = l.apply(x.grant.EgressRules())
	}
	compiled, err := policy.NewEgress(rules)
	if err != nil {
		return nil, badRule(err)
	}
	v := compiled.Connect(dest)
	inspected := v.Inspect
	if v.Inspect && req.Path != "" && permits(v.Action) {
		v = compiled.Request(dest, req)
	}
	return connect.NewResponse(&api.TestEgressResponse{Verdict: verdict(v, inspected, dest, r.Msg.Guest)}), nil
}

func permits(a api.EgressAction) bool {
	return a == api.EgressAction_EGRESS_ACTION_ALLOW || a == api.EgressAction_EGRESS_ACTION_ASK
}

// verdict is the form in which a decision is shown.
func verdict(v policy.Verdict, inspected bool, dest policy.Destination, name string) *api.EgressVerdict {
	out := &api.EgressVerdict{Action: v.Action, Reason: v.Reason, Inspected: inspected}
	if !permits(v.Action) {
		out.Action = api.EgressAction_EGRESS_ACTION_DENY
	}
	if v.Rule != nil {
		out.Rule = proto.Clone(v.Rule).(*api.EgressRule)
	}
	if out.Action == api.EgressAction_EGRESS_ACTION_DENY && v.Rule == nil {
		to := dest.String()
		if dest.Port == 443 {
			to = dest.Host.String()
		}
		if out.Cure = "carrel allow " + name + " " + to; name == "" {
			out.Cure = "--allow " + to + " with carrel run or start, or a rule in policy.yaml"
		}
	}
	return out
}
