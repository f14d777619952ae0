package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// attachTime bounds how long a guest may take to see a share, or to lose one.
const attachTime = 45 * time.Second

// attach gives a running guest share i of the grant; it answers when the guest
// has it.
//
//  1. the share's process is started: by this daemon, since a keeper with a guest
//     can start none, and on Windows by that
//  2. the keeper gets its control socket, and nothing else of it stays here
//  3. the keeper has the guest mount it
func (d *Daemon) attach(ctx context.Context, e *entry, k *keeper, g *policy.Grant, i int) error {
	control, err := d.serveShare(ctx, e, g, i)
	if err != nil {
		return err
	}
	return d.mountShare(ctx, e, k, g, i, control)
}

// serveAll starts the processes of all shares of the grant, side by side. With an err
// there are none.
func (d *Daemon) serveAll(ctx context.Context, e *entry, g *policy.Grant) ([]guest.Live, error) {
	n := len(g.Spec().Shares)
	controls, errs := make([]guest.Live, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { controls[i], errs[i] = d.serveShare(ctx, e, g, i) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		closeAll(controls)
		return nil, err
	}
	return controls, nil
}

// mountAll has the guest mount what serveAll began, in the grant's order, as in a cold
// start: one that came after another inside it would cover that.
func (d *Daemon) mountAll(ctx context.Context, e *entry, k *keeper, g *policy.Grant, controls []guest.Live) error {
	for i, c := range controls {
		if err := d.mountShare(ctx, e, k, g, i, c); err != nil {
			closeAll(controls[i+1:])
			return err
		}
	}
	return nil
}

func closeAll(controls []guest.Live) {
	for _, c := range controls {
		if c != nil {
			c.Close()
		}
	}
}

// serveShare starts the process of share i of the grant.
func (d *Daemon) serveShare(ctx context.Context, e *entry, g *policy.Grant, i int) (guest.Live, error) {
	if len(d.opts.Share) == 0 {
		return nil, notLive(e.name)
	}
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	pin := g.Pins()[i]
	log, err := os.OpenFile(filepath.Join(d.dir(e), "share.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, attachFailed(e.name, err)
	}
	defer log.Close()
	c, err := guest.ServeLive(ctx, d.opts.Place.Run, e.name, guest.ShareSpec{
		Tag: tagOf(g, i), Path: pin.Path, Dev: pin.Dev, Ino: pin.Ino, Owner: d.opts.ShareOwner,
		Store: guest.ReviewDir(d.dir(e), g.Layer(i)), Rules: g.ShareRules(i),
	}, guest.ShareStart{Command: d.opts.Share, Log: log})
	if err != nil {
		return nil, attachFailed(e.name, err)
	}
	return c, nil
}

func tagOf(g *policy.Grant, i int) string { return "l" + g.Layer(i) }

// mountShare has the guest mount share i, and lets go of its control socket.
func (d *Daemon) mountShare(ctx context.Context, e *entry, k *keeper, g *policy.Grant, i int, c guest.Live) error {
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	err := c.Hand()
	c.Close()
	if err != nil {
		return attachFailed(e.name, err)
	}
	if _, err := k.own.AttachShare(ctx, connect.NewRequest(&api.AttachShareRequest{Tag: tagOf(g, i), Share: g.Spec().Shares[i]})); err != nil {
		return d.handOn(e, err)
	}
	return nil
}

func attachFailed(name string, err error) error {
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeInternal, "attach", fmt.Sprintf("guest %s does not get the share: %s", name, cause), cure)
}

// detach takes a share from a running guest. When it returns without an error
// nothing in the guest reaches the folder.
func (d *Daemon) detach(ctx context.Context, e *entry, k *keeper, sh *api.Share) error {
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	if _, err := k.own.DetachShare(ctx, connect.NewRequest(&api.DetachShareRequest{Tag: sh.GuestPath})); err != nil {
		return d.handOn(e, err)
	}
	return nil
}

func notLive(name string) error {
	return api.NewError(connect.CodeUnimplemented, "not_live", "the shares of a running guest cannot be changed on this system", "carrel stop "+name+", change them, and start it again")
}

// sharedFolder says how a share is carried: the keeper's word, if the guest runs.
func (d *Daemon) sharedFolder(e *entry, sh *api.Share) *api.SharedFolder {
	out := &api.SharedFolder{Share: proto.Clone(sh).(*api.Share)}
	info, k, _ := e.get()
	if k == nil {
		return out
	}
	for _, f := range info.Shares {
		if f.GetShare().GetGuestPath() == sh.GuestPath {
			out.Carrier, out.Cause = f.Carrier, f.Cause
		}
	}
	return out
}
