package guest

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// maxNotices is how many lines of ours one task's transcript gets; carrel
// egress has them all.
const maxNotices = 200

// tell writes what was not let out into the transcript of the task that wanted
// it, as far as that is known, and into the guest's own file. It waits for
// nobody.
func (k *Keeper) tell(id, line string) {
	line = strings.TrimPrefix(line, "carrel: ") // whoever shows it says that again
	k.mu.Lock()
	t, g := k.tasks[id], k.g
	if t == nil || t.over() { // the guest's word, which may be nothing
		t = k.onlyLocked()
	}
	k.mu.Unlock()
	if t != nil {
		t.mu.Lock()
		t.notices++
		n := t.notices
		t.mu.Unlock()
		switch {
		case n < maxNotices:
			t.spool.note([]byte(line))
		case n == maxNotices:
			t.spool.note([]byte("more was not let out: carrel egress " + k.info.Name + " has all of it"))
		}
	}
	if g != nil {
		g.refusals.add("carrel: " + line)
	}
}

// onlyLocked is the task that runs, if just one does.
func (k *Keeper) onlyLocked() (only *task) {
	for _, t := range k.tasks {
		if t.over() {
			continue
		}
		if only != nil {
			return nil
		}
		only = t
	}
	return only
}

// Bounds of what waits for the agent's file of refusals.
const (
	maxRefusals     = 128
	refusalsTimeout = 10 * time.Second
)

// refusals are lines that wait for the agent; those that find no room are
// dropped.
type refusals struct {
	mu    sync.Mutex
	lines []string
	wake  chan struct{} // buffered
}

func (r *refusals) add(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) >= maxRefusals {
		return
	}
	r.lines = append(r.lines, line)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *refusals) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	r.lines = nil
	return lines
}

// sayRefusals hands lines to the agent, one message at a time, until the guest
// is gone. An agent that does not take them costs the guest nothing else.
func (g *Guest) sayRefusals() {
	for {
		select {
		case <-g.gone:
			return
		case <-g.refusals.wake:
		}
		lines := g.refusals.take()
		if len(lines) == 0 {
			continue
		}
		end, ok := g.rest.runs()
		if !ok { // they are late, and not worth to let it go on
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), refusalsTimeout)
		err := g.boot.ask(ctx, &wire.Control{Kind: &wire.Control_Refused{Refused: &wire.Refused{Lines: lines}}})
		cancel()
		end()
		if err != nil {
			g.log.Info("the agent takes no refusals", "error", err)
		}
	}
}
