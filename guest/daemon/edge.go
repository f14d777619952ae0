package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// edgeTime bounds one question to an egress process.
const edgeTime = 10 * time.Second

// edge is the daemon's end of one egress process's socket.
type edge struct {
	own   apiconnect.EdgeServiceClient
	close func()
}

func newEdge(socket string) *edge {
	h := guest.NewHTTPClient(socket)
	// An egress process that the world has taken over may send what it likes: it
	// is bounded, and nothing is unpacked.
	bounds := connect.WithClientOptions(connect.WithReadMaxBytes(1<<20), connect.WithAcceptCompression("gzip", nil, nil))
	return &edge{own: apiconnect.NewEdgeServiceClient(h, "http://edge", bounds), close: h.CloseIdleConnections}
}

// edgeAt is newEdge; nil where this host has no egress processes.
func (d *Daemon) edgeAt(socket string) *edge {
	if len(d.opts.Edge) == 0 {
		return nil
	}
	return newEdge(socket)
}

// refuseOutside refuses a guest that is to reach something where no egress
// process could let it: it is not started with less than it was granted.
func (d *Daemon) refuseOutside(conf *api.ConfigureEdgeRequest) error {
	if len(d.opts.Edge) > 0 {
		return nil
	}
	reaches := len(conf.Secrets) > 0
	for _, r := range conf.Rules {
		reaches = reaches || r.Action != api.EgressAction_EGRESS_ACTION_DENY
	}
	if !reaches {
		return nil
	}
	return &hypervisor.Error{
		Op: "start the guest", Err: errors.New("it may reach hosts by its rules, and this host has no egress process yet that would let it"),
		Cure: "start it without rules that allow or ask (carrel policy explain shows them)",
	}
}

// removeSockets removes the sockets of a guest's processes that have ended: the
// egress process has given up the right to do so itself, and a keeper that was
// killed could not.
func (d *Daemon) removeSockets(name string) {
	os.Remove(guest.EdgeSocketPath(d.opts.Place.Run, name))
	guest.RemoveSockets(guest.SocketPath(d.opts.Place.Run, name))
}

// edgeOf returns the guest's egress process, nil if the guest does not run.
func (e *entry) edgeOf() *edge {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.edge
}

// shutWhy says why a guest that runs reaches nothing, whatever its rules are.
func (e *entry) shutWhy() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.shut
}

func (e *entry) setShut(why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.shut = why
}

// reapply makes the policy as it is now hold for a guest that runs: after its
// adoption, after a secret was changed, after an answer for all guests. What
// cannot be decided any more is shut: the guest goes on and reaches nothing. Who
// starts a guest, or claims one, holds its rules until it is known here.
func (d *Daemon) reapply(ctx context.Context, e *entry) {
	e.rules.Lock()
	defer e.rules.Unlock()
	edge := e.edgeOf()
	if edge == nil || d.isWarm(e) { // one in the pool has nothing that could have changed
		return
	}
	info, _, _ := e.get()
	why := ""
	x, err := d.decideAgain(info.Spec)
	if err == nil {
		_, err = d.configure(ctx, e, x)
	}
	if err != nil {
		why = "nothing can be reached, since the policy could not be applied (mend it, and allow or deny something, or start the guest again): " + err.Error()
		d.log.Error("shut a guest", "guest", e.name, "error", err)
		if _, err := d.tell(ctx, e, edge, &api.ConfigureEdgeRequest{}); err != nil {
			d.log.Error("shut a guest", "guest", e.name, "error", err)
		}
	}
	e.setShut(why)
}

// reapplyAll does so for every guest that which picks, side by side, and
// returns when it holds. Also a guest that is being started or claimed is one.
func (d *Daemon) reapplyAll(ctx context.Context, which func(*entry) bool) {
	var all sync.WaitGroup
	for _, e := range d.everyEntry() {
		if which(e) {
			all.Go(func() { d.reapply(ctx, e) })
		}
	}
	all.Wait()
}

// secretChanged makes a secret that was set or removed count from the next
// request on, in every guest that uses it. What takes values out of the logs that
// are sent knows first: a guest can be made to say one as soon as it is in use.
func (d *Daemon) secretChanged(ctx context.Context, name string) {
	d.telemetry.secretsChanged()
	d.reapplyAll(ctx, func(*entry) bool { return true })
	d.log.Info("secret changed", "secret", name)
}

// Watch implements EgressService by handing on what the egress process says.
func (s *egressService) Watch(ctx context.Context, r *connect.Request[api.WatchEgressRequest], st *connect.ServerStream[api.EgressEvent]) error {
	e, edge, err := s.running(r.Msg.Guest)
	if err != nil {
		return err
	}
	up, err := edge.own.Watch(ctx, connect.NewRequest(&api.WatchEgressRequest{Follow: r.Msg.Follow, Last: r.Msg.Last}))
	if err != nil {
		return s.d.edgeError(e, err)
	}
	defer up.Close()
	// The HTTP/2 transport looks at a request's context only while it writes.
	defer context.AfterFunc(ctx, func() { up.Close() })()
	if err := st.Send(nil); err != nil {
		return err
	}
	known := s.d.knownTasks(e)
	for up.Receive() {
		ev := up.Msg()
		if !known(ctx, ev.Task) {
			ev = proto.Clone(ev).(*api.EgressEvent)
			ev.Task = ""
		}
		if err := st.Send(ev); err != nil {
			return err
		}
	}
	if err := up.Err(); err != nil && ctx.Err() == nil {
		return s.d.edgeError(e, err)
	}
	return nil
}

// knownTasks returns what tells the guest's tasks from what the guest makes up.
func (d *Daemon) knownTasks(e *entry) func(context.Context, string) bool {
	const maxUnknown = 64 // then it is not asked about any more
	known, unknown := map[string]bool{}, 0
	return func(ctx context.Context, id string) bool {
		if id == "" || known[id] {
			return true
		}
		if unknown >= maxUnknown {
			return false
		}
		ts, err := d.tasks(ctx, e)
		if err != nil {
			return false
		}
		for _, t := range ts {
			known[t.Id] = true
		}
		if !known[id] {
			unknown++
		}
		return known[id]
	}
}

// Answer implements EgressService. An answer that is to last is kept first, and
// then given.
func (s *egressService) Answer(ctx context.Context, r *connect.Request[api.AnswerEgressRequest]) (*connect.Response[api.AnswerEgressResponse], error) {
	e, edge, err := s.running(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	q, err := s.question(ctx, e, edge, r.Msg.Question)
	if err != nil {
		return nil, err
	}
	switch r.Msg.Answer {
	case api.EgressAnswer_EGRESS_ANSWER_GUEST, api.EgressAnswer_EGRESS_ANSWER_ALWAYS:
		rule, err := answerRule(q)
		if err != nil {
			return nil, badRule(err)
		}
		if r.Msg.Answer == api.EgressAnswer_EGRESS_ANSWER_ALWAYS {
			if err := s.d.addToPolicy(rule); err != nil {
				return nil, refusal(err)
			}
			s.d.reapplyAll(ctx, func(o *entry) bool { return o != e })
		}
		if _, _, err := s.d.change(ctx, e, []*api.EgressRule{rule}, nil); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, edgeTime)
	defer cancel()
	res, err := edge.own.Answer(ctx, connect.NewRequest(&api.AnswerEgressRequest{Question: r.Msg.Question, Answer: r.Msg.Answer}))
	if err != nil {
		// What was kept has answered the question already.
		lasts := r.Msg.Answer == api.EgressAnswer_EGRESS_ANSWER_GUEST || r.Msg.Answer == api.EgressAnswer_EGRESS_ANSWER_ALWAYS
		if lasts && connect.CodeOf(err) == connect.CodeNotFound {
			return connect.NewResponse(&api.AnswerEgressResponse{}), nil
		}
		return nil, s.d.edgeError(e, err)
	}
	s.d.record(e, "egress.answered", &api.EgressEvent{Host: q.Host, Port: q.Port, Method: q.Method, Path: q.Path, Question: q.Question,
		Verdict: &api.EgressVerdict{Action: answerAction(r.Msg.Answer), Reason: r.Msg.Answer.String()}})
	s.d.log.Info("egress question answered", "guest", e.name, "host", q.Host, "port", q.Port, "answer", r.Msg.Answer)
	return connect.NewResponse(res.Msg), nil
}

func answerAction(a api.EgressAnswer) api.EgressAction {
	switch a {
	case api.EgressAnswer_EGRESS_ANSWER_ONCE, api.EgressAnswer_EGRESS_ANSWER_GUEST, api.EgressAnswer_EGRESS_ANSWER_ALWAYS:
		return api.EgressAction_EGRESS_ACTION_ALLOW
	}
	return api.EgressAction_EGRESS_ACTION_DENY
}

// question finds a question among what the egress process keeps.
func (s *egressService) question(ctx context.Context, e *entry, edge *edge, id string) (*api.EgressEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, edgeTime)
	defer cancel()
	st, err := edge.own.Watch(ctx, connect.NewRequest(&api.WatchEgressRequest{}))
	if err != nil {
		return nil, s.d.edgeError(e, err)
	}
	defer st.Close()
	for st.Receive() {
		if ev := st.Msg(); ev.Question == id && id != "" && ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION {
			return proto.Clone(ev).(*api.EgressEvent), nil
		}
	}
	if err := st.Err(); err != nil {
		return nil, s.d.edgeError(e, err)
	}
	return nil, api.NewError(connect.CodeNotFound, "no_question", fmt.Sprintf("guest %s asks no question %.40q", e.name, id), "carrel egress "+e.name+" shows them")
}

// answerRule is the rule that a yes to a question makes: exactly what was asked.
func answerRule(q *api.EgressEvent) (*api.EgressRule, error) {
	h, err := policy.ParseHost(q.Host)
	if err != nil || q.Port == 0 || q.Port > 65535 {
		return nil, fmt.Errorf("the question is about %.80q, port %d, which is no destination", q.Host, q.Port)
	}
	var req *policy.Request
	if q.Method != "" {
		req = &policy.Request{Method: q.Method, Path: q.Path}
	}
	rule := policy.Answer(policy.Destination{Host: h, Port: uint16(q.Port)}, req, true)
	return rule, policy.CheckRule(rule)
}

// auditDir is a guest's audit folder.
func (d *Daemon) auditDir(name string) string { return filepath.Join(d.guests, name, "audit") }
