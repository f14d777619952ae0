package guest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// jumpMin is how far the host's wall clock and its monotonic one must have parted
// since the guest was told the time. Slewing (adjtime(3)) parts them by 0.5 ms in
// a second at most, so it also comes here in the end.
const jumpMin = 500 * time.Millisecond

// clock keeps a guest's clock at the host's, which jumps when the host was asleep
// or somebody sets it. A guest's own clock stood still meanwhile, or goes on as if
// nothing had happened.
//
// Nobody polls. The host's kernel says that its clock jumped where it can
// (watchClock); and the two clocks are compared at what happens anyway: a task's
// start, which waits until the guest knows the time, and the heartbeat of tasks
// that run. Those go on with the old time for as long as the host needs to say so.
type clock struct {
	ask func(context.Context, *wire.Control) error
	// fresh opens a stream to the agent and closes it: streams that were open
	// may live on where none can be made any more.
	fresh func(context.Context) error
	dead  func(error) // the guest does not answer
	log   *slog.Logger
	// read returns the wall clock and the time since some moment of one that only
	// runs on.
	read func() (wall time.Time, run time.Duration)

	// runs holds a guest that is to be told, unless it stands still: it is told when
	// it goes on. nil: it never does.
	runs func() (end func(), ok bool)

	watch *clockWatch // nil: the host says nothing

	mu     sync.Mutex // held while the guest is told
	parted time.Duration
}

// clockWatch says when the host's clock has jumped.
type clockWatch struct {
	jumped <-chan struct{} // buffered: it may have jumped more than once
	close  func()          // ends what serves jumped, and waits for it
}

// newClock begins with a guest that was told the time just now.
func newClock(g *Guest) *clock {
	base := time.Now()
	c := &clock{
		ask: g.boot.ask,
		fresh: func(ctx context.Context) error {
			conn, err := g.vm.Dial(ctx, wire.PortAgent)
			if err == nil {
				err = conn.Close()
			}
			return err
		},
		dead: func(err error) {
			g.fail("the guest gave no sign of life after the host's clock had jumped: " + err.Error())
			g.vm.Kill()
		},
		log:  g.log,
		runs: g.rest.runs,
		read: func() (time.Time, time.Duration) { now := time.Now(); return now.Round(0), now.Sub(base) },
	}
	c.parted = c.apart()
	w, err := watchClock()
	if err != nil {
		// Then it is noticed a little later, at the next event.
		g.log.Warn("clock", "error", err)
	}
	c.watch = w
	return c
}

func (c *clock) apart() time.Duration {
	wall, run := c.read()
	return time.Duration(wall.UnixNano()) - run
}

// follow tells the guest the time whenever the host says that its clock jumped,
// until gone is closed.
func (c *clock) follow(gone <-chan struct{}) {
	if c.watch == nil {
		return
	}
	defer c.watch.close()
	for {
		select {
		case <-gone:
			return
		case <-c.watch.jumped:
			end := func() {}
			if c.runs != nil {
				var ok bool
				if end, ok = c.runs(); !ok {
					continue
				}
			}
			c.tell(true)
			end()
		}
	}
}

// check tells the guest the time if the host's clock has jumped, and returns when
// it knows it.
func (c *clock) check() { c.tell(false) }

func (c *clock) tell(sure bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	apart := c.apart()
	jump := apart - c.parted
	if !sure && jump.Abs() < jumpMin {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), pingDeath)
	defer cancel()
	wall, _ := c.read()
	err := c.ask(ctx, &wire.Control{Kind: &wire.Control_SetTime{SetTime: &wire.SetTime{UnixNanos: wall.UnixNano()}}})
	if err == nil {
		c.parted = apart
		err = c.fresh(ctx)
	}
	switch {
	case err == nil:
		c.log.Info("clock", "jump", jump)
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		c.dead(err)
	default: // it is told again at the next event
		c.log.Warn("clock", "jump", jump, "error", err)
	}
}
