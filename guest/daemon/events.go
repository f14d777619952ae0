package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of events.
const (
	// maxWatchers bounds the callers that follow events at once.
	maxWatchers = 256
	// eventPage is how many events are read at once for one watcher, which is
	// all of them that wait in memory for a slow one.
	eventPage = 128
	// maxEvents is how many are kept.
	maxEvents = 50_000
	// maxEvent bounds one event, in bytes.
	maxEvent = 48 << 10
	// maxListed bounds the events of one answer.
	maxListed = 1000
)

// keptEvent is one event as it is kept.
type keptEvent struct {
	seq     uint64
	time    time.Time
	guest   string // of memoryEvents only
	payload []byte // api.Event, marshalled, without its sequence and time
}

// eventLog keeps events, of which the oldest go.
type eventLog interface {
	// Append returns the event's number once it is kept.
	Append(ctx context.Context, kind, guest string, payload []byte) (seq uint64, err error)
	// Events returns what comes after a number, and the number of the oldest
	// event that is there, or of the next one if there is none.
	Events(ctx context.Context, after uint64, limit int) (list []keptEvent, first uint64, err error)
	// Ends returns the numbers of the oldest event that is there, or of the next one
	// if there is none, and of the newest that there was.
	Ends(ctx context.Context) (first, last uint64, err error)
}

// events is the one stream of what users see. One goroutine writes it; every
// watcher reads what is kept at its own pace, so that a slow one holds up nobody
// and costs a page.
type events struct {
	log eventLog

	mu       sync.Mutex
	last     uint64        // the number of the newest event
	grown    chan struct{} // closed and replaced when there are more
	watchers int

	over chan struct{} // closed when the daemon ends

	seen func(*api.Event) // called with each that is kept; may be nil
}

// newEvents goes on after the last event of the log: a caller who comes as soon as
// the daemon serves, with the number of the last event of the daemon before, must
// not hear that there is none. A log that cannot be read says so at the next read.
func newEvents(log eventLog) *events {
	v := &events{log: log, grown: make(chan struct{}), over: make(chan struct{})}
	_, v.last, _ = log.Ends(context.Background())
	return v
}

// append keeps an event and wakes those who wait for it.
func (v *events) append(ctx context.Context, ev *api.Event) error {
	b, err := proto.Marshal(ev)
	if err != nil {
		return err
	}
	if len(b) > maxEvent {
		return fmt.Errorf("an event of %d bytes; %d are possible", len(b), maxEvent)
	}
	kind := ev.ProtoReflect().WhichOneof(ev.ProtoReflect().Descriptor().Oneofs().Get(0))
	seq, err := v.log.Append(ctx, string(kind.Name()), ev.Guest, b)
	if err != nil {
		return err
	}
	if v.seen != nil {
		v.seen(ev)
	}
	v.mu.Lock()
	v.last = max(v.last, seq)
	close(v.grown)
	v.grown = make(chan struct{})
	v.mu.Unlock()
	return nil
}

func (v *events) state() (last uint64, grown <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last, v.grown
}

// read returns some of the events after a number, and where to go on. What is
// missing between the two is told as a gap. An event that cannot be read is an
// error of its own, with its number to go on after.
func (v *events) read(ctx context.Context, after uint64, limit int, guest string) (list []*api.Event, next uint64, err error) {
	kept, first, err := v.log.Events(ctx, after, limit)
	if err != nil {
		return nil, after, api.NewError(connect.CodeInternal, "disk", "the events cannot be read: "+err.Error(), "")
	}
	next = after
	missing := func(to uint64) {
		if n := len(list); guest != "" && n > 0 && list[n-1].GetGap() != nil { // of those between the two none was this guest's
			list[n-1].Sequence = to
		} else {
			list = append(list, &api.Event{Sequence: to, Kind: &api.Event_Gap{Gap: &api.EventGap{First: next + 1}}})
		}
		next = to
	}
	switch {
	case after == 0 && len(kept) > 0: // who has nothing misses nothing that is too old
		next = min(first, kept[0].seq) - 1
	case after == 0:
	case after < first-1:
		missing(first - 1)
	}
	for _, k := range kept {
		if k.seq > next+1 { // a guest with too many has lost its oldest
			missing(k.seq - 1)
		}
		ev := new(api.Event)
		if err := proto.Unmarshal(k.payload, ev); err != nil {
			if len(list) > 0 {
				return list, next, nil // the next time
			}
			return nil, k.seq, api.NewError(connect.CodeDataLoss, "damaged", fmt.Sprintf("event %d cannot be read: %v", k.seq, err), "go on after it")
		}
		ev.Sequence, ev.Time = k.seq, timestamppb.New(k.time)
		next = k.seq
		if guest == "" || ev.Guest == guest {
			list = append(list, ev)
		}
	}
	return list, next, nil
}

// follow calls send with the events after a number until ctx or, without more,
// the kept ones end. It returns how far it came.
func (v *events) follow(ctx context.Context, after uint64, more bool, guest string, send func(*api.Event) error) (uint64, error) {
	for {
		_, grown := v.state() // before the look: what comes after it is not missed
		list, next, err := v.read(ctx, after, eventPage, guest)
		if err != nil {
			return after, err
		}
		for _, ev := range list {
			if err := send(ev); err != nil {
				return after, err
			}
			after = ev.Sequence
		}
		if next > after || len(list) > 0 {
			after = next
			continue
		}
		if !more {
			return after, nil
		}
		select {
		case <-grown:
		case <-v.over:
			return after, api.NewError(connect.CodeUnavailable, "closing", "the daemon is being shut down", "go on after the last event when it runs again")
		case <-ctx.Done():
			return after, ctx.Err()
		}
	}
}

// enter counts a watcher; leave takes it away.
func (v *events) enter(after uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if after > v.last {
		return api.NewError(connect.CodeOutOfRange, "bad_offset", fmt.Sprintf("there is no event %d yet: the last one is %d", after, v.last), "begin at 0")
	}
	if v.watchers >= maxWatchers {
		return api.NewError(connect.CodeResourceExhausted, "too_many_watchers", fmt.Sprintf("%d callers follow events, which is the limit", v.watchers), "end one of them")
	}
	v.watchers++
	return nil
}

func (v *events) leave() {
	v.mu.Lock()
	v.watchers--
	v.mu.Unlock()
}

// eventService implements EventService.
type eventService struct{ d *Daemon }

// Watch implements EventService.
func (s *eventService) Watch(ctx context.Context, r *connect.Request[api.WatchEventsRequest], st *connect.ServerStream[api.Event]) error {
	v, after := s.d.events, r.Msg.After
	if err := checkEventGuest(r.Msg.Guest); err != nil {
		return err
	}
	if r.Msg.OnlyNew {
		after, _ = v.state()
	}
	if err := v.enter(after); err != nil {
		return err
	}
	defer v.leave()
	if err := st.Send(nil); err != nil { // a client waits for the head of an answer
		return err
	}
	_, err := v.follow(ctx, after, !r.Msg.NoFollow, r.Msg.Guest, st.Send)
	return err
}

// List implements EventService.
func (s *eventService) List(ctx context.Context, r *connect.Request[api.ListEventsRequest]) (*connect.Response[api.ListEventsResponse], error) {
	v, limit := s.d.events, int(r.Msg.Limit)
	switch {
	case limit == 0:
		limit = 100
	case limit < 0 || limit > maxListed:
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_number", fmt.Sprintf("a list has 1 to %d events", maxListed), "")
	}
	if err := checkEventGuest(r.Msg.Guest); err != nil {
		return nil, err
	}
	if err := v.enter(r.Msg.After); err != nil {
		return nil, err
	}
	defer v.leave()
	out := new(api.ListEventsResponse)
	full := errors.New("the list is full")
	bytes := 0
	add := func(ev *api.Event) error {
		if bytes += proto.Size(ev); len(out.Events) == limit || bytes > maxAnswer && len(out.Events) > 0 {
			return full
		}
		out.Events = append(out.Events, ev)
		return nil
	}
	next, err := v.follow(ctx, r.Msg.After, false, r.Msg.Guest, add)
	if err == nil && len(out.Events) == 0 && r.Msg.TimeoutNanos > 0 {
		limit = 1 // what comes then is told at once
		wctx, cancel := context.WithTimeoutCause(ctx, time.Duration(r.Msg.TimeoutNanos), full)
		defer cancel()
		next, err = v.follow(wctx, next, true, r.Msg.Guest, func(ev *api.Event) error {
			if err := add(ev); err != nil {
				return err
			}
			cancel()
			return nil
		})
		if ctx.Err() == nil && wctx.Err() != nil {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, full) {
		return nil, err
	}
	out.Next = next
	return connect.NewResponse(out), nil
}

// maxAnswer bounds the events of one answer together, in bytes.
const maxAnswer = 4 << 20

func checkEventGuest(name string) error {
	if name != "" && !hypervisor.ValidName(name) {
		return api.NewError(connect.CodeInvalidArgument, "bad_name", fmt.Sprintf("%.60q is not a guest's name", name), "")
	}
	return nil
}
