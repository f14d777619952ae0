package daemon

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// Bounds of one guest's verdicts: so many at once, and then so many a second. A
// guest can make as many as it likes, and each takes the place of others' events.
const (
	verdictBurst = 1000
	verdictRate  = 50
)

// firstWatch and lastWatch bound the pause before an egress process is watched
// again that does not answer.
const (
	firstWatch = 100 * time.Millisecond
	lastWatch  = 10 * time.Second
)

// verdicts tells what an egress process decides, until it is gone. Its sequence
// says what was told before. A stream that breaks says nothing of the process: it
// is watched again as long as the guest has it.
func (s *source) verdicts(ctx context.Context, e *entry, out *edge, after uint64, known func(context.Context, string) bool) {
	f := &verdictFlow{s: s, e: e, after: after, known: known, b: &bucket{left: verdictBurst, at: time.Now()}}
	for pause := firstWatch; ; pause = min(2*pause, lastWatch) {
		if f.watch(ctx, out) {
			pause = firstWatch
		}
		if !e.hasEdge(ctx, out, pause) {
			break
		}
	}
	f.tellLeftOut(ctx)
}

// hasEdge says, after a while, whether the guest still has an egress process. It
// says no at once when it has it no more.
func (e *entry) hasEdge(ctx context.Context, out *edge, after time.Duration) bool {
	later, cancel := context.WithTimeout(ctx, after)
	defer cancel()
	_, err := e.wait(later, func(*api.Guest, *keeper) bool { return e.edgeOf() != out })
	return err != nil && ctx.Err() == nil
}

// verdictFlow is what one egress process has said.
type verdictFlow struct {
	s       *source
	e       *entry
	b       *bucket
	known   func(context.Context, string) bool
	after   uint64 // the last verdict that was taken
	leftOut int64  // how many were not told since
}

// watch tells verdicts until the stream ends, and says whether there were any.
func (f *verdictFlow) watch(ctx context.Context, out *edge) (any bool) {
	st, err := out.own.Watch(ctx, connect.NewRequest(&api.WatchEgressRequest{Follow: true}))
	if err != nil {
		return false
	}
	defer st.Close()
	// The HTTP/2 transport looks at a request's context only while it writes.
	defer context.AfterFunc(ctx, func() { st.Close() })()
	for st.Receive() {
		ev := proto.Clone(st.Msg()).(*api.EgressEvent)
		if ev.Sequence <= f.after {
			continue
		}
		if f.after > 0 { // what the process no longer keeps
			f.leftOut += int64(min(ev.Sequence-f.after-1, 1<<62))
		}
		f.after, any = ev.Sequence, true
		if !f.b.take(time.Now()) && ev.Kind != api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION {
			f.leftOut++
			continue
		}
		f.tellLeftOut(ctx)
		if !f.known(ctx, ev.Task) {
			ev.Task = ""
		}
		f.s.tell(ctx, &api.Event{Guest: f.e.name, Kind: &api.Event_Egress{Egress: ev}})
	}
	return any
}

func (f *verdictFlow) tellLeftOut(ctx context.Context) {
	if f.leftOut > 0 {
		f.s.tell(ctx, &api.Event{Guest: f.e.name, Kind: &api.Event_EgressLeftOut{EgressLeftOut: &api.EgressLeftOut{Count: f.leftOut}}})
		f.leftOut = 0
	}
}

// bucket lets verdictBurst pass, and verdictRate a second.
type bucket struct {
	left float64
	at   time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.left = min(verdictBurst, b.left+now.Sub(b.at).Seconds()*verdictRate)
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
