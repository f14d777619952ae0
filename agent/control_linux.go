package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/steer"
	"github.com/carrel-vm/carrel/guest/wire"
)

// maxMounts bounds Setup.
const maxMounts = 64

// maxSteering bounds Ready.steering, in bytes.
const maxSteering = 256

// host speaks with the host over the boot stream:
//
//  1. Hello
//  2. Setup is read and done, Ready says so
//  3. Controls, one after the other, until PowerOff or the stream's end
//
// fail ends the agent later, if what was set up breaks.
func (a *Agent) host(ctx context.Context, fail func(error)) error {
	r := wire.NewReader(a.o.Boot)
	hello := &wire.Hello{
		Version:   wire.Version,
		Agent:     version(),
		Kernel:    kernelRelease(),
		InitNanos: int64(time.Since(began)),
	}
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) == nil {
		hello.UpNanos = up.Nano()
	}
	if err := wire.Write(a.o.Boot, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: hello}}); err != nil {
		return fmt.Errorf("say hello to the host: %w", err)
	}
	var m wire.FromHost
	if err := r.Read(&m); err != nil {
		return fmt.Errorf("read the host's setup: %w", err)
	}
	setup := m.GetSetup()
	if setup == nil {
		return errors.New("the host's first frame is not its setup")
	}
	ready := &wire.Ready{}
	err := a.setUp(ctx, setup, fail, ready)
	if err != nil {
		ready.Error = text(err.Error(), wire.MaxText)
	} else {
		close(a.ready)
	}
	if err := wire.Write(a.o.Boot, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: ready}}); err != nil {
		return fmt.Errorf("tell the host that the guest is ready: %w", err)
	}
	for {
		if err := r.Read(&m); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		c := m.GetControl()
		if c == nil {
			return errors.New("the host sent a frame that is out of order")
		}
		answer, last := &wire.Answer{Id: c.Id}, false
		switch k := c.Kind.(type) {
		case *wire.Control_Ping:
		case *wire.Control_SetTime:
			if err := a.setTime(k.SetTime.UnixNanos); err != nil {
				answer.Error = text(err.Error(), wire.MaxText)
			}
		case *wire.Control_Refused:
			if err := a.refused(k.Refused.Lines); err != nil {
				answer.Error = text(err.Error(), wire.MaxText)
			}
		case *wire.Control_Attach, *wire.Control_Detach, *wire.Control_Refresh:
			if err := a.changeShares(ctx, c); err != nil {
				answer.Error = text(err.Error(), wire.MaxText)
			}
		case *wire.Control_Claim:
			if err := a.claimed(k.Claim); err != nil {
				answer.Error = text(err.Error(), wire.MaxText)
			}
		case *wire.Control_PowerOff:
			last = true
			a.endTasks(ctx, time.Duration(k.PowerOff.GraceNanos))
			if a.o.flush != nil { // the host takes the answer for a promise to be gone soon
				a.o.flush()
			}
		default:
			answer.Error = "this agent does not know what is asked"
		}
		if err := wire.Write(a.o.Boot, &wire.FromGuest{Kind: &wire.FromGuest_Answer{Answer: answer}}); err != nil {
			return fmt.Errorf("answer the host: %w", err)
		}
		if last {
			return nil
		}
	}
}

// setUp does what Setup says, and says in r how names are steered.
func (a *Agent) setUp(ctx context.Context, s *wire.Setup, fail func(error), r *wire.Ready) (err error) {
	n := int(s.MaxTasks)
	if n < 1 || n > maxCalls {
		n = maxTasks
	}
	a.slots = make(chan struct{}, n)
	if err := checkEnv(s.Env); err != nil {
		return err
	}
	if err := a.setTime(s.UnixNanos); err != nil {
		return err
	}
	// Names and certificates take the longest. The certificates are no wall:
	// only the first task waits for them.
	var outside errgroup.Group
	var steered *steer.Steering
	asked := time.Now()
	if a.o.Network != nil && a.o.DialHost != nil {
		outside.Go(func() (err error) {
			steered, err = a.o.Network()
			switch {
			case !s.Egress && err == nil:
				err, steered = steered.Close(), nil
			case !s.Egress:
				err = nil
			case err != nil:
				err = fmt.Errorf("steer the guest's connections: %w", err)
			}
			r.SteerNanos = int64(time.Since(asked))
			return err
		})
	}
	a.settling.Go(func() {
		if a.o.Settle != nil {
			a.env, a.settleErr = a.o.Settle(s)
		}
		// The host's own come later, and so win.
		a.env = append(a.env, s.Env...)
	})
	err = a.setUpInside(ctx, s)
	r.MountNanos = int64(time.Since(asked))
	if e := outside.Wait(); err == nil {
		err = e
	}
	r.Steering = noSteering
	if steered != nil {
		a.egress, r.Steering = newEgress(steered, a.o.DialHost, a.o.Cgroup), text(steered.How, maxSteering)
		a.egress.start(ctx, fail)
	}
	return err
}

// setUpInside does what of Setup is about the guest alone.
func (a *Agent) setUpInside(ctx context.Context, s *wire.Setup) error {
	if a.o.Prepare != nil {
		if err := a.o.Prepare(); err != nil {
			return err
		}
	}
	<-a.children.restricted
	if err := a.children.err; err != nil {
		return err
	}
	if a.o.Name != nil {
		if err := a.o.Name(s.Hostname); err != nil {
			return fmt.Errorf("set the guest's name: %w", err)
		}
	}
	if len(s.Mounts) > maxMounts {
		return fmt.Errorf("%d shares, %d is the limit", len(s.Mounts), maxMounts)
	}
	for i, m := range s.Mounts {
		if err := checkMount(m); err != nil {
			return err
		}
		var err error
		switch {
		case a.o.shares != nil:
			err = a.o.shares.attach(ctx, m)
		case a.o.Mount != nil:
			err = a.o.Mount(i, m)
		}
		if err != nil {
			return fmt.Errorf("mount share %s at %s in the guest: %w", m.Tag, m.Path, err)
		}
	}
	switch {
	case len(s.Volumes) == 0:
	case len(s.Volumes) > maxMounts || a.o.volumes == nil:
		return fmt.Errorf("%d volumes: this guest can have none, or not so many", len(s.Volumes))
	default:
		return a.o.volumes.mount(s.Volumes)
	}
	return nil
}

// changeShares does what a Control says about shares.
func (a *Agent) changeShares(ctx context.Context, c *wire.Control) error {
	if a.o.shares == nil {
		return errors.New("the shares of this guest cannot change while it runs")
	}
	switch k := c.Kind.(type) {
	case *wire.Control_Attach:
		if err := checkMount(k.Attach); err != nil {
			return err
		}
		return a.o.shares.attach(ctx, k.Attach)
	case *wire.Control_Detach:
		return a.o.shares.detach(k.Detach.Path)
	case *wire.Control_Refresh:
		return a.o.shares.refresh(k.Refresh.Path)
	}
	return nil
}

// checkMount refuses what mount(2) would understand differently. Where a share
// may be mounted was decided on the host.
func checkMount(m *wire.Mount) error {
	if !strings.HasPrefix(m.Path, "/") || strings.IndexByte(m.Path+m.Tag+m.Type, 0) >= 0 || !validID(m.Tag) {
		return fmt.Errorf("share %.80q at %.200q is malformed", m.Tag, m.Path)
	}
	return nil
}

func (a *Agent) setTime(nanos int64) error {
	if a.o.SetTime == nil {
		return nil
	}
	if nanos <= 0 {
		return fmt.Errorf("the host's clock says %d, which is not a time", nanos)
	}
	return a.o.SetTime(time.Unix(0, nanos))
}
