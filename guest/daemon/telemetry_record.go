package daemon

import (
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/secret"
	"github.com/carrel-vm/carrel/guest/telemetry"
)

// fields gathers a record's attributes. What may be a guest's word is named in
// carrel.untrusted: a receiver must show it as such, and believe none of it.
type fields struct {
	list      []telemetry.Attr
	untrusted []string
}

func (f *fields) add(key string, value any) {
	switch v := value.(type) {
	case string:
		if v == "" {
			return
		}
	case []string:
		if len(v) == 0 {
			return
		}
	}
	f.list = append(f.list, telemetry.Attr{Key: key, Value: value})
}

// guests adds what a guest may have made up.
func (f *fields) guests(key string, value any) {
	n := len(f.list)
	if f.add(key, value); len(f.list) > n {
		f.untrusted = append(f.untrusted, key)
	}
}

// word is an enumeration's value in lower case: TASK_STATE_EXITED is exited.
func word(prefix string, v interface{ String() string }) string {
	return strings.ToLower(strings.TrimPrefix(v.String(), prefix))
}

// asJSON is a message as carrel events --json shows it, in printable ASCII.
func asJSON(m proto.Message) string {
	b, err := protojson.Marshal(m)
	if err != nil { // invalid UTF-8, which the API refuses
		return ""
	}
	return string(audit.ASCII(string(b)))
}

// eventRecord is an event as a record. docs/telemetry.md has its fields.
func eventRecord(ev *api.Event) telemetry.Record {
	r := telemetry.Record{Time: ev.Time.AsTime(), Body: asJSON(ev)}
	var f fields
	f.add("carrel.event.sequence", int64(ev.Sequence))
	f.add("carrel.guest", ev.Guest)
	switch k := ev.Kind.(type) {
	case *api.Event_Gap:
		r.Name, r.Warn = "carrel.gap", true
		f.add("carrel.gap.first", int64(k.Gap.GetFirst()))
	case *api.Event_Changed:
		r.Name = "carrel.guest"
		r.Warn = guestFields(&f, k.Changed)
	case *api.Event_Removed:
		r.Name = "carrel.guest.removed"
	case *api.Event_Task:
		r.Name = "carrel.task"
		r.Warn = taskFields(&f, k.Task)
	case *api.Event_Egress:
		r.Name = "carrel.egress"
		r.Warn = egressFields(&f, k.Egress)
	case *api.Event_EgressLeftOut:
		r.Name, r.Warn = "carrel.egress.left_out", true
		f.add("carrel.egress.left_out", k.EgressLeftOut.GetCount())
	case *api.Event_Image:
		r.Name = "carrel.image"
		f.add("carrel.image.name", k.Image.GetName())
	case *api.Event_ImageRemoved:
		r.Name = "carrel.image.removed"
		f.add("carrel.image.name", k.ImageRemoved.GetName())
	case *api.Event_DaemonStarted:
		r.Name = "carrel.daemon.started"
		f.add("process.pid", int64(k.DaemonStarted.GetPid()))
		f.add("service.version", k.DaemonStarted.GetVersion())
	default:
		r.Name = "carrel.event" // of a newer daemon than this one
	}
	if ev.Time == nil { // a gap has none
		r.Time = now()
	}
	return f.into(r)
}

func (f *fields) into(r telemetry.Record) telemetry.Record {
	if len(f.untrusted) > 0 {
		f.add("carrel.untrusted", append(f.untrusted, "body"))
	}
	r.Attrs = f.list
	return r
}

func guestFields(f *fields, g *api.Guest) (warn bool) {
	f.add("carrel.guest.state", word("GUEST_STATE_", g.GetState()))
	f.add("carrel.guest.image", g.GetSpec().GetImage())
	f.add("carrel.guest.driver", g.GetDriver())
	f.add("carrel.guest.boundary", g.GetBoundary())
	var shares, ports []string
	for _, s := range g.GetSpec().GetShares() {
		shares = append(shares, s.GetPath()+":"+word("SHARE_MODE_", s.GetMode()))
	}
	for _, p := range g.GetPorts() {
		ports = append(ports, portText(p))
	}
	f.add("carrel.guest.shares", shares)
	f.add("carrel.guest.ports", ports)
	f.guests("carrel.guest.cause", g.GetCause())
	return g.GetCause() != "" || g.GetState() == api.GuestState_GUEST_STATE_DAMAGED
}

func taskFields(f *fields, t *api.Task) (warn bool) {
	f.add("carrel.task.id", t.GetId())
	f.add("carrel.task.state", word("TASK_STATE_", t.GetState()))
	f.add("process.command_args", t.GetSpec().GetArgv())
	f.add("process.working_directory", t.GetSpec().GetWorkdir())
	f.add("carrel.task.user", t.GetSpec().GetUser())
	e := t.GetEnding()
	if e == nil {
		return false
	}
	f.add("process.exit.code", int64(e.GetStatus()))
	if e.GetSignal() != 0 {
		f.add("carrel.task.signal", int64(e.GetSignal()))
	}
	if e.GetOom() {
		f.add("carrel.task.oom", true)
	}
	if e.GetTimedOut() {
		f.add("carrel.task.timed_out", true)
	}
	f.guests("carrel.task.cause", e.GetCause())
	return t.GetState() == api.TaskState_TASK_STATE_INTERRUPTED
}

func egressFields(f *fields, e *api.EgressEvent) (warn bool) {
	f.add("carrel.egress.kind", word("EGRESS_EVENT_KIND_", e.GetKind()))
	f.add("carrel.egress.sequence", int64(e.GetSequence()))
	f.add("carrel.egress.connection", int64(e.GetConnection()))
	f.guests("carrel.task.id", e.GetTask())
	f.guests("server.address", e.GetHost())
	if e.GetPort() != 0 {
		f.add("server.port", int64(e.GetPort()))
	}
	f.add("network.peer.address", e.GetAddress())
	f.guests("http.request.method", e.GetMethod())
	f.guests("url.path", e.GetPath())
	f.add("carrel.secret.name", e.GetSecret())
	f.add("carrel.egress.question", e.GetQuestion())
	if e.GetKind() == api.EgressEventKind_EGRESS_EVENT_KIND_END {
		f.add("carrel.egress.bytes_up", e.GetBytesUp())
		f.add("carrel.egress.bytes_down", e.GetBytesDown())
		f.add("carrel.egress.duration_nanos", e.GetDurationNanos())
	}
	v := e.GetVerdict()
	if v == nil {
		return false
	}
	f.add("carrel.egress.action", actionWord(v.GetAction()))
	f.guests("carrel.egress.reason", v.GetReason())
	f.add("carrel.egress.rule", v.GetRule().GetOrigin())
	return v.GetAction() != api.EgressAction_EGRESS_ACTION_ALLOW
}

func actionWord(a api.EgressAction) string {
	if a == api.EgressAction_EGRESS_ACTION_UNSPECIFIED {
		return "deny"
	}
	return word("EGRESS_ACTION_", a)
}

// auditRecord is a line of a guest's audit log as a record: the line whole, so
// that a receiver has the chain, and not looked into, since a process that a guest
// took over may have written it.
func auditRecord(guest string, e audit.Entry) telemetry.Record {
	r := telemetry.Record{Time: e.Time, Name: "carrel.audit." + e.Kind, Body: string(e.Line)}
	var f fields
	f.add("carrel.guest", guest)
	if e.Line == nil {
		r.Time, r.Name, r.Warn = now(), "carrel.audit.unreadable", true
		return f.into(r)
	}
	f.guests("carrel.audit.sequence", int64(e.Seq))
	f.guests("carrel.audit.kind", e.Kind)
	return f.into(r)
}

// Of a header's value of minHidden bytes its plain form is hidden, and every form
// of one of minCoded: shorter ones are in too many other words.
const minHidden, minCoded = 4, 8

// hideHeaders takes the values of headers that were sent out of what is answered,
// also without the scheme (Bearer) that stands before one.
func hideHeaders(sent http.Header, words string) string {
	var coded []*api.EdgeSecret
	var plain []string
	for name, values := range sent {
		if name == "Content-Type" || name == "User-Agent" {
			continue
		}
		for _, v := range values {
			for _, v := range append([]string{v}, strings.Fields(v)...) {
				switch {
				case len(v) >= minCoded:
					coded = append(coded, &api.EdgeSecret{Name: name, Value: []byte(v)})
				case len(v) >= minHidden:
					plain = append(plain, v, "[secret "+name+"]")
				}
			}
		}
	}
	return strings.NewReplacer(plain...).Replace(secret.Redactor(coded)(words))
}
