package guest

import (
	"context"
	"log/slog"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/hypervisor"
)

// KeepRequest is what a daemon hands to a keeper over an inherited descriptor.
// The keeper decides again on the same request and rules.
type KeepRequest struct {
	Spec   *api.GuestSpec
	Rules  policy.Rules
	Pins   []policy.Pin
	Parts  policy.Parts
	Socket string
	// Env is NAME=value for every task that does not set them itself: the
	// placeholders of secrets. Values of secrets never come here.
	Env []string
	// Warm says that the guest is started for nobody: ClaimGuest makes it that of a
	// request.
	Warm bool `json:",omitempty"`
	// Wake says that the guest was stopped for idleness and is started for whoever
	// needs it. One that does not become ready is stopped for idleness still: the
	// next one who needs it tries again.
	Wake bool `json:",omitempty"`
}

// KeepOptions are what the process around a keeper gives it.
type KeepOptions struct {
	Driver hypervisor.Driver
	// Share starts the process of one share; nil: this boundary has none.
	Share func(ctx context.Context, s ShareSpec) (*control.Conn, error)
	// ShareOwner is the user who owns every entry of a share, as the guest's
	// kernel sees it.
	ShareOwner uint32
	// OneUser says that tasks of this boundary can be one user only.
	OneUser bool
	Log     *slog.Logger
	// Link leads to the guest's egress process; nil: the guest reaches nothing.
	Link *link.Conn
	// Confine gives up what a keeper with a running guest does not need, before the
	// guest's first frame is read. A
	// failure stops the start.
	Confine func() error
	// Wanted says why nobody waits for the guest, or nil; nil itself: somebody does. The daemon that had this
	// keeper started may have died since. It is asked before and after the guest's
	// folder is this keeper's: the next daemon takes a guest for its own whose folder
	// has a keeper by then, and for one that has stopped without.
	Wanted func() error
	// Listening is called once when the socket takes connections.
	Listening func()
	// Describe fills in what the driver knows of the guest for inspection.
	Describe func(*api.Guest)
	// Began is when this process began, for the trace.
	Began time.Time
	// Absence is how long an ephemeral guest waits for its caller to come back;
	// 0: half a minute. Tests on slow machines give it more.
	Absence time.Duration
}
