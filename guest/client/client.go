// Package client is the Go SDK: it finds or starts the user's daemon and runs
// tasks in guests, in the shape of os/exec.
//
//	c, err := client.Connect(ctx, client.Options{})
//	g, err := c.StartGuest(ctx, &api.GuestSpec{Ephemeral: true}, nil)
//	p, err := c.StartTask(ctx, client.Task{Guest: g.Name, Args: []string{"make", "test"}, Stdout: os.Stdout})
//	err = p.Wait() // *client.ExitError, as in os/exec
//
// What comes out of a guest (output, file names, file contents) is the guest's
// word. This package writes it where the caller says and interprets none of it.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/place"
)

// APIVersion is the version of the daemon's API that this package speaks.
const APIVersion = "carrel.v1"

// maxMessage bounds one message from the daemon, in bytes. Output comes in
// pieces of at most 1 MiB; a listing of guests with their tasks may be larger.
const maxMessage = 16 << 20

// versionTimeout bounds the first answer of a daemon that accepts connections.
const versionTimeout = 60 * time.Second

// Options say how to find the daemon. The zero value is what the command line
// uses.
type Options struct {
	// Home stands in for CARREL_HOME; empty: the environment decides.
	Home string
	// Daemon is the path of carreld; empty: beside this program, then in PATH.
	Daemon string
	// NoStart makes a daemon that does not run an error, which IsNotRunning
	// recognises.
	NoStart bool
	// AnyVersion accepts a daemon of another version, so that it can be
	// looked at and stopped.
	AnyVersion bool
	// Version is the caller's version; empty: this package's.
	Version string
	// Notice is told, in one line, what a person may want to know, for
	// example that a daemon is being started. May be nil.
	Notice func(string)
}

// Client speaks to one user's daemon. It may be used by many goroutines, and
// survives a restart of the daemon.
type Client struct {
	opts  Options
	place place.Place

	guests  apiconnect.GuestServiceClient
	tasks   apiconnect.TaskServiceClient
	files   apiconnect.FileServiceClient
	shares  apiconnect.ShareServiceClient
	reviews apiconnect.ReviewServiceClient
	egress  apiconnect.EgressServiceClient
	policy  apiconnect.PolicyServiceClient
	secrets apiconnect.SecretServiceClient
	audit   apiconnect.AuditServiceClient
	images  apiconnect.ImageServiceClient
	disks   apiconnect.DiskServiceClient
	events  apiconnect.EventServiceClient
	system  apiconnect.SystemServiceClient

	transport *http.Transport
	version   *api.VersionResponse

	mu    sync.Mutex
	spare net.Conn // checked, and not yet used by the transport
}

// Connect finds the daemon, starts it unless o.NoStart is set, and checks that
// it is this user's own and speaks this version of the API.
func Connect(ctx context.Context, o Options) (*Client, error) {
	home, err := placeOf(o)
	if err != nil {
		return nil, &Error{Code: "bad_home", Message: err.Error()}
	}
	c := &Client{opts: o, place: home}
	c.transport = newTransport(c.dial)
	hc := &http.Client{Transport: c.transport}
	const base = "http://carrel" // no name is resolved: every dial goes to the socket
	opts := []connect.ClientOption{connect.WithReadMaxBytes(maxMessage)}
	c.guests = apiconnect.NewGuestServiceClient(hc, base, opts...)
	c.tasks = apiconnect.NewTaskServiceClient(hc, base, append(opts[:1:1], api.Pieces())...)
	c.files = apiconnect.NewFileServiceClient(hc, base, opts...)
	c.shares = apiconnect.NewShareServiceClient(hc, base, opts...)
	c.reviews = apiconnect.NewReviewServiceClient(hc, base, opts...)
	c.egress = apiconnect.NewEgressServiceClient(hc, base, opts...)
	c.policy = apiconnect.NewPolicyServiceClient(hc, base, opts...)
	c.secrets = apiconnect.NewSecretServiceClient(hc, base, opts...)
	c.audit = apiconnect.NewAuditServiceClient(hc, base, opts...)
	c.images = apiconnect.NewImageServiceClient(hc, base, opts...)
	c.disks = apiconnect.NewDiskServiceClient(hc, base, opts...)
	c.events = apiconnect.NewEventServiceClient(hc, base, opts...)
	c.system = apiconnect.NewSystemServiceClient(hc, base, opts...)
	for try := 1; ; try++ {
		if err := c.ensure(ctx); err != nil {
			c.Close()
			return nil, err
		}
		err := c.checkVersion(ctx)
		if err == nil {
			return c, nil
		}
		var own *Error
		if try == connectTries || !errors.As(err, &own) || own.err == nil || !broken(ctx, own.err) {
			c.Close()
			return nil, err
		}
	}
}

// connectTries bounds how often a daemon is looked for. One that is just ending
// may take a connection and drop it; the next look finds that it is gone.
const connectTries = 3

func placeOf(o Options) (place.Place, error) {
	if o.Home != "" {
		return place.At(o.Home)
	}
	return place.Home()
}

// Close lets go of the daemon. It stops neither the daemon nor any task, and
// may be called twice.
func (c *Client) Close() error {
	c.mu.Lock()
	spare := c.spare
	c.spare = nil
	c.mu.Unlock()
	if spare != nil {
		spare.Close()
	}
	c.transport.CloseIdleConnections()
	return nil
}

// Place returns where this client's daemon keeps its things.
func (c *Client) Place() place.Place { return c.place }

// DaemonVersion returns what the daemon said when the client connected.
func (c *Client) DaemonVersion() *api.VersionResponse { return c.version }

// checkVersion asks for the daemon's version. A daemon that does not know the
// question is too old to be spoken to, and must not fail later with something
// that nobody understands.
func (c *Client) checkVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	res, err := c.system.Version(ctx, connect.NewRequest(&api.VersionRequest{}))
	if err != nil {
		if code := connect.CodeOf(err); code == connect.CodeUnimplemented || code == connect.CodeNotFound {
			return skew("the daemon does not say its version", "")
		}
		return wrap("ask the daemon at "+c.place.Socket+" for its version", err)
	}
	c.version = res.Msg
	if c.opts.AnyVersion {
		return nil
	}
	own := c.opts.Version
	if own == "" {
		own = Version()
	}
	switch theirs := res.Msg.Version; {
	case res.Msg.Api != APIVersion:
		return skew(fmt.Sprintf("the daemon speaks %q and this program %q", res.Msg.Api, APIVersion), theirs)
	case released(own) && released(theirs) && own != theirs:
		return skew(fmt.Sprintf("the daemon is version %s and this program %s", theirs, own), theirs)
	}
	return nil
}

func skew(cause, version string) error {
	msg := "the running daemon is of another version"
	if version != "" {
		msg += ": " + version
	}
	return &Error{
		Code: "version_skew", Message: msg, Cause: cause,
		Cure: "run `carrel daemon stop` and try again: the new daemon takes over the guests that run",
	}
}

// released says whether v can be compared: a build without a version says
// nothing about its age.
func released(v string) bool { return v != "" && v != "dev" && v != "(devel)" }

// release is set when a release is linked, to the same value in every program
// (-ldflags "-X github.com/carrel-vm/carrel/guest/client.release=1.2.3").
var release = "0.1.0-dev"

// Version returns this program's version.
func Version() string { return release }

// Build returns what is known about how this program was built.
func Build() *api.VersionResponse {
	v := &api.VersionResponse{Version: Version(), Go: runtime.Version(), Api: APIVersion}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}
