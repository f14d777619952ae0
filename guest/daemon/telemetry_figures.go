package daemon

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/telemetry"
)

func now() time.Time { return time.Now() }

func portText(p *api.Port) string {
	return fmt.Sprintf("%s:%d:%d", p.GetHostAddress(), p.GetHostPort(), p.GetGuestPort())
}

// tally counts events since the daemon's start. All are counted, also those that
// are never sent.
type tally struct {
	mu       sync.Mutex
	tasks    map[string]int64 // by how they ended
	verdicts map[string]int64 // by action
	up, down int64            // bytes out of guests and into them
}

func (y *tally) seen(ev *api.Event) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.tasks == nil {
		y.tasks, y.verdicts = map[string]int64{}, map[string]int64{}
	}
	switch k := ev.Kind.(type) {
	case *api.Event_Task:
		switch {
		case !finished(k.Task):
		case k.Task.State == api.TaskState_TASK_STATE_INTERRUPTED:
			y.tasks["interrupted"]++
		case k.Task.GetEnding().GetStatus() != 0:
			y.tasks["failed"]++
		default:
			y.tasks["succeeded"]++
		}
	case *api.Event_EgressLeftOut:
		y.verdicts["left_out"] += k.EgressLeftOut.GetCount()
	case *api.Event_Egress:
		switch e := k.Egress; e.GetKind() {
		case api.EgressEventKind_EGRESS_EVENT_KIND_END:
			y.up += max(0, e.GetBytesUp())
			y.down += max(0, e.GetBytesDown())
		case api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT, api.EgressEventKind_EGRESS_EVENT_KIND_REQUEST:
			y.verdicts[actionWord(e.GetVerdict().GetAction())]++
		}
	}
}

// points makes a figure's points of counts, each named by key.
func points(key string, of map[string]int64) (out []telemetry.Point) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, telemetry.Point{Value: of[name], Attrs: []telemetry.Attr{{Key: key, Value: name}}})
	}
	return out
}

// figures are the metrics as they are now. Those that count up begin at the
// daemon's start.
func (x *exporter) figures() []telemetry.Metric {
	guests := map[string]int64{"starting": 0, "ready": 0, "stopping": 0, "stopped": 0, "damaged": 0}
	tasks := map[string]int64{"queued": 0, "running": 0}
	for _, e := range x.d.entries() {
		info, k, _ := e.get()
		guests[word("GUEST_STATE_", info.GetState())]++
		if k == nil {
			continue
		}
		for _, t := range info.GetTasks() {
			if !finished(t) {
				tasks[word("TASK_STATE_", t.GetState())]++
			}
		}
	}
	last, _ := x.d.events.state()
	x.tally.mu.Lock()
	ended, verdicts := maps.Clone(x.tally.tasks), maps.Clone(x.tally.verdicts)
	bytes := map[string]int64{"up": x.tally.up, "down": x.tally.down}
	x.tally.mu.Unlock()
	x.mu.Lock()
	told := x.told
	told.dropped = maps.Clone(told.dropped)
	x.mu.Unlock()
	one := func(n int64) []telemetry.Point { return []telemetry.Point{{Value: n}} }
	all := []telemetry.Metric{
		{Name: "carrel.guests", Unit: "{guest}", About: "Guests by state.", Points: points("carrel.guest.state", guests)},
		{Name: "carrel.tasks", Unit: "{task}", About: "Tasks that have not ended, by state.", Points: points("carrel.task.state", tasks)},
		{Name: "carrel.tasks.ended", Unit: "{task}", About: "Tasks that ended.", Sum: true, Points: points("carrel.task.outcome", ended)},
		{Name: "carrel.egress.verdicts", Unit: "{verdict}", About: "Connections and requests that were judged.", Sum: true, Points: points("carrel.egress.action", verdicts)},
		{Name: "carrel.egress.bytes", Unit: "By", About: "Bytes of connections that ended, out of guests (up) and into them.", Sum: true, Points: points("carrel.egress.direction", bytes)},
		{Name: "carrel.telemetry.queue", Unit: "{event}", About: "Events that the receiver does not have yet.", Points: one(int64(last - min(last, told.events)))},
		{Name: "carrel.telemetry.logs_waiting", Unit: "{log}", About: "Audit logs of removed guests that the receiver does not have yet.", Points: one(int64(len(x.d.spooled())))},
		{Name: "carrel.telemetry.sent", Unit: "{record}", About: "Records that the receiver took.", Sum: true, Points: one(told.sent)},
		{Name: "carrel.telemetry.dropped", Unit: "{record}", About: "What the receiver will never have, by the reason.", Sum: true, Points: points("carrel.telemetry.reason", told.dropped)},
		{Name: "carrel.telemetry.failures", Unit: "{request}", About: "Requests that were not taken.", Sum: true, Points: one(told.failures)},
	}
	return slices.DeleteFunc(all, func(m telemetry.Metric) bool { return len(m.Points) == 0 })
}
