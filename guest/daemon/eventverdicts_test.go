package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// shaky is an egress process whose streams break: each call sends some of its
// verdicts, from the oldest that it keeps, and fails. The last one stays.
type shaky struct {
	apiconnect.UnimplementedEdgeServiceHandler
	calls atomic.Int64
	plan  [][2]uint64 // from and to, of each call
}

func (s *shaky) Watch(ctx context.Context, _ *connect.Request[api.WatchEgressRequest], st *connect.ServerStream[api.EgressEvent]) error {
	n := int(s.calls.Add(1)) - 1
	if n >= len(s.plan) {
		<-ctx.Done()
		return nil
	}
	for i := s.plan[n][0]; i != 0 && i <= s.plan[n][1]; i++ {
		if err := st.Send(&api.EgressEvent{Sequence: i, Host: "a.example", Kind: api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT}); err != nil {
			return err
		}
	}
	return connect.NewError(connect.CodeUnavailable, errors.New("it broke"))
}

// Streams that break one after the other end nothing while the guest has its
// egress process: every verdict is told once, in order, and what the process no
// longer keeps is counted.
func TestVerdictsGoOn(t *testing.T) {
	plan := [][2]uint64{{1, 2}, {}, {}, {}, {1, 3}, {6, 7}}
	h := &shaky{plan: plan}
	_, handler := apiconnect.NewEdgeServiceHandler(h)
	srv := httptest.NewServer(handler)
	defer srv.Close()
	out := &edge{own: apiconnect.NewEdgeServiceClient(srv.Client(), srv.URL), close: srv.Client().CloseIdleConnections}
	v := newEvents(&memoryEvents{max: 100})
	s := newSource(&Daemon{events: v, log: slog.New(slog.DiscardHandler)}, v)
	e := newEntry("a", &api.Guest{Name: "a"})
	e.edge = out
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		s.verdicts(ctx, e, out, 0, func(context.Context, string) bool { return true })
	}()
	list, err := collect(t.Context(), v, 0, "a", 6)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint64{1, 2, 3, 0, 6, 7} {
		if want == 0 {
			if n := list[i].GetEgressLeftOut().GetCount(); n != 2 {
				t.Errorf("%d are said to be left out, not 2: %v", n, list[i])
			}
		} else if got := list[i].GetEgress().GetSequence(); got != want {
			t.Errorf("verdict %d came as number %d", want, got)
		}
	}
	// It ends with the process, whose stream is open or between two tries.
	e.mu.Lock()
	e.edge = nil
	e.changedLocked()
	e.mu.Unlock()
	srv.Listener.Close()
	srv.CloseClientConnections()
	<-over
	cancel()
}
