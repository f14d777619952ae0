package guest

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// heartbeat asks the agent for a sign of life while tasks run, so that a hung
// guest ends its tasks rather than keep their callers waiting for ever. An idle
// guest is not woken.
type heartbeat struct {
	mu   sync.Mutex
	busy int
	wake chan struct{} // buffered: there is work
}

func (h *heartbeat) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy++; h.busy == 1 {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

func (h *heartbeat) end() {
	h.mu.Lock()
	h.busy--
	h.mu.Unlock()
}

func (h *heartbeat) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.busy == 0
}

// beats asks the guest while tasks run, until it is gone.
func (g *Guest) beats() {
	g.beat.run(g.gone, g.rest.runs, func() (alive bool) {
		g.clock.check()
		ctx, cancel := context.WithTimeout(context.Background(), pingDeath)
		defer cancel()
		err := g.boot.ask(ctx, &wire.Control{Kind: &wire.Control_Ping{Ping: &wire.Ping{}}})
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			g.fail("the guest gave no sign of life for " + pingDeath.String())
			g.vm.Kill()
			return false
		}
		return true
	})
}

// run calls ask every pingEvery while there is work, until gone is closed or ask says
// that nobody lives there. runs holds the guest meanwhile: one that is idle by now may
// stand still, and would answer too late.
func (h *heartbeat) run(gone <-chan struct{}, runs func() (end func(), ok bool), ask func() (alive bool)) {
	t := time.NewTicker(pingEvery)
	defer t.Stop()
	t.Stop()
	for {
		select {
		case <-gone:
			return
		case <-h.wake:
		}
		t.Reset(pingEvery)
		for !h.idle() {
			select {
			case <-gone:
				return
			case <-t.C:
			}
			if h.idle() {
				break
			}
			end, ok := runs()
			if !ok {
				continue
			}
			alive := ask()
			end()
			if !alive {
				return
			}
		}
		t.Stop()
	}
}
