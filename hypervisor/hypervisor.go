// Package hypervisor is the one seam between Carrel and whatever makes the
// boundary around a guest.
package hypervisor

import (
	"context"
	"net"
	"os"
	"time"
)

// Driver makes guests of one kind: qemu, vz, hcs, and the test driver.
type Driver interface {
	// Name is the driver's name as users see it: "qemu".
	Name() string
	// Create checks cfg and reserves what the guest needs. Nothing of the
	// guest runs yet. A Config that this driver cannot honour whole is an
	// error; nothing is left out silently.
	Create(ctx context.Context, cfg Config, h Handlers) (VM, error)
}

// VM is one guest.
//
//	created ── Start ──> running <── Pause / Resume ──> paused
//	    └───── Close ───────┴── Stop, or its own end ──────┴──> gone
type VM interface {
	// Start lets the guest run. It returns when the machine executes, not
	// when the agent is ready: readiness is the agent's Hello.
	Start(ctx context.Context) error
	// Dial opens a stream to a port on which the guest listens. Before the
	// guest's vsock driver is up it fails at once with ErrNotReady.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Listen accepts streams that the guest opens to a port of the host. The
	// listener belongs to this guest alone. Streams half-close (CloseWrite).
	Listen(port uint32) (net.Listener, error)
	// Mounts says how the agent reaches each share of the Config, in order.
	Mounts() []Mount
	// Pause stops the guest's processors; Resume lets them go on.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Kill ends the guest without asking it. A polite end is the caller's
	// affair: it asks the agent, and calls Kill when the grace is over.
	Kill() error
	// Wait returns when the guest is gone and says why: nil after its own
	// orderly power-off or a Kill, else a *GoneError.
	Wait() error
	// Close kills the guest if it runs, waits for it, and removes everything
	// that Create and Start made. It may be called twice.
	Close() error
}

// Handlers are what a driver calls back into, given as values so that a
// driver imports nothing of ours.
type Handlers struct {
	// Console gets the guest's console output. It must not block: a driver
	// calls it from the goroutine that drains the guest. The bytes are the
	// guest's and must never reach a terminal unescaped.
	Console func(p []byte)
	// Share starts the server of share i of the Config. A driver calls it for
	// those that it carries itself; for a share whose Mount has the type "fuse"
	// it does not, since the agent dials for that. Several may be started at once.
	// nil: nobody serves shares.
	Share func(ctx context.Context, i int, s Share) (ShareServer, error)
	// Took is told how long a part of Create or Start took; nil: nobody asks. It
	// may be called from any goroutine.
	Took func(name string, begin, end time.Time)
}

// Note tells Took, if anybody asks, of a part that ends now.
func (h Handlers) Note(name string, begin time.Time) {
	if h.Took != nil {
		h.Took(name, begin, time.Now())
	}
}

// Carrier says what a share's requests come by.
type Carrier string

// The carriers that drivers have.
const (
	// VirtioFS is one end of a socket on which vhost-user is spoken, for QEMU's
	// virtio-fs device.
	VirtioFS Carrier = "virtio-fs"
	// Device is an open /dev/fuse, which does not block.
	Device Carrier = "device"
)

// ShareServer is a running server of one share.
type ShareServer interface {
	// Serve hands over what carries the requests; f stays the caller's.
	Serve(c Carrier, f *os.File) error
	// Close ends the server and waits for it.
	Close() error
}
