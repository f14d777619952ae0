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

// beats runs until the guest is gone.
func (g *Guest) beats() {
	t := time.NewTicker(pingEvery)
	defer t.Stop()
	t.Stop()
	for {
		select {
		case <-g.gone:
			return
		case <-g.beat.wake:
		}
		t.Reset(pingEvery)
		for !g.beat.idle() {
			select {
			case <-g.gone:
				return
			case <-t.C:
			}
			g.clock.check()
			ctx, cancel := context.WithTimeout(context.Background(), pingDeath)
			err := g.boot.ask(ctx, &wire.Control{Kind: &wire.Control_Ping{Ping: &wire.Ping{}}})
			cancel()
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
				g.fail("the guest gave no sign of life for " + pingDeath.String())
				g.vm.Kill()
				return
			}
		}
		t.Stop()
	}
}
