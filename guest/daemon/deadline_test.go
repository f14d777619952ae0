package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// A call ends with its deadline, also where what it waits for does not.
func TestByDeadline(t *testing.T) {
	d := &Daemon{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	req := connect.NewRequest(&api.HealthRequest{})
	answer := connect.NewResponse(&api.HealthResponse{Healthy: true})
	own := errors.New("its own words")
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	stuck := make(chan struct{})
	defer close(stuck)
	for name, c := range map[string]struct {
		ctx  context.Context
		next connect.UnaryFunc
		want error
	}{
		"stuck": {soon(), func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { <-stuck; return answer, nil }, context.DeadlineExceeded},
		"ends by it": {soon(), func(ctx context.Context, _ connect.AnyRequest) (connect.AnyResponse, error) {
			<-ctx.Done()
			return nil, own
		}, own},
		"in time": {soon(), func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { return answer, nil }, nil},
		"without": {t.Context(), func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { return answer, nil }, nil},
	} {
		out, err := d.byDeadline(c.ctx, req, c.next)
		if !errors.Is(err, c.want) || err == nil && out != connect.AnyResponse(answer) {
			t.Errorf("%s: %v, %v", name, out, err)
		}
	}
	// One that stays away holds a place until it ends. Where none is left the call is
	// waited for.
	if n := d.late.Load(); n != 1 {
		t.Errorf("%d calls go on after their deadline", n)
	}
	d.late.Store(maxLate)
	ends, waited := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := d.byDeadline(soon(), req, func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { <-ends; return nil, own })
		waited <- err
	}()
	select {
	case err := <-waited:
		t.Errorf("one too many was answered for with %v", err)
	case <-time.After(lateness + 500*time.Millisecond):
	}
	close(ends)
	if err := <-waited; !errors.Is(err, own) {
		t.Errorf("one that was waited for ended with %v", err)
	}
	if n := d.late.Load(); n != maxLate {
		t.Errorf("then there were %d places taken", n)
	}
	defer func() {
		if p, ok := recover().(string); !ok || !strings.Contains(p, "deadline_test.go") {
			t.Errorf("a fault in a call: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d.byDeadline(ctx, req, func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { panic("a fault") })
	t.Error("a fault went unseen")
}
