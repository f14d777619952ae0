package daemon

import (
	"context"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// attach gives a running guest share i of the grant; it answers when the guest
// has it.
func (d *Daemon) attach(_ context.Context, e *entry, _ *keeper, _ *policy.Grant, _ int) error {
	return notLive(e.name)
}

// detach takes a share from a running guest. When it returns without an error
// nothing in the guest reaches the folder.
func (d *Daemon) detach(_ context.Context, e *entry, _ *keeper, _ *api.Share) error {
	return notLive(e.name)
}

func notLive(name string) error {
	return api.NewError(connect.CodeUnimplemented, "not_live", "the shares of a running guest cannot be changed here yet", "carrel stop "+name+", change them, and start it again")
}

// sharedFolder says how a share is carried.
func (d *Daemon) sharedFolder(_ *entry, sh *api.Share) *api.SharedFolder {
	return &api.SharedFolder{Share: sh}
}
