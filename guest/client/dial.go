package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
)

// dialTimeout bounds one connection to a local socket, which is at once unless
// the daemon's queue is full.
const dialTimeout = 10 * time.Second

// errNotRunning says that no daemon listens.
var errNotRunning = errors.New("no daemon is running")

// IsNotRunning says whether err means that no daemon was running and that
// Options.NoStart forbade to start one.
func IsNotRunning(err error) bool { return errors.Is(err, errNotRunning) }

// newTransport speaks HTTP/2 without TLS: attaching to a task needs both
// directions of one request at once, which HTTP/1.1 does not have.
func newTransport(dial func(context.Context) (net.Conn, error)) *http.Transport {
	t := &http.Transport{
		Proxy:              nil, // the environment's proxies have no business here
		DisableCompression: true,
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	t.HTTP2 = api.ClientHTTP2()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// ensure leaves a checked connection for the next request, and starts the
// daemon where that is needed and allowed.
func (c *Client) ensure(ctx context.Context) error {
	conn, err := dialSocket(ctx, c.place)
	if errors.Is(err, errNotRunning) && !c.opts.NoStart {
		conn, err = c.startDaemon(ctx)
	}
	if err != nil {
		return unreachable(c.place, err)
	}
	c.mu.Lock()
	old := c.spare
	c.spare = conn
	c.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return nil
}

func unreachable(p place.Place, err error) error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, errNotRunning):
		return &Error{Code: "not_running", Message: "no daemon is running for " + p.Socket, Cure: "it starts with the next command, or with `carrel daemon run`", err: err}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: "canceled", Message: "reach the daemon at " + p.Socket, Cause: err.Error(), err: err}
	}
	return &Error{Code: "daemon_unreachable", Message: "reach the daemon at " + p.Socket, Cause: err.Error(), err: err}
}

// dial gives the transport the connection that ensure left, or a new one.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	conn := c.spare
	c.spare = nil
	c.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	return dialSocket(ctx, c.place)
}

// dialSocket connects to p's socket after making sure that no other user can
// be behind it: the folder lets nobody else in, the socket is ours, and so is
// the process that answers. A socket that is missing or that nobody serves is
// errNotRunning.
func dialSocket(ctx context.Context, p place.Place) (net.Conn, error) {
	if err := place.CheckPrivate(p.Run); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrPermission) {
			return nil, errNotRunning // nothing is there, or nothing that we may see: whoever makes it says why not
		}
		return nil, squatted(p, err)
	}
	if err := place.CheckSocket(p.Socket); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errNotRunning
		}
		return nil, squatted(p, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("nobody took the connection within %v", dialTimeout))
	defer cancel()
	conn, err := place.Dial(ctx, p.Socket)
	var stranger *place.Stranger
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, errNotRunning
	case errors.As(err, &stranger):
		return nil, squatted(p, err)
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, err
}

func squatted(p place.Place, err error) error {
	return &Error{
		Code: "socket_not_ours", Message: "the daemon's socket " + p.Socket + " cannot be trusted, and nothing was sent to it",
		Cause: err.Error(), Cure: "find out who made it, remove it, and try again; or set CARREL_HOME to a folder of your own", err: err,
	}
}

// FindDaemon returns the path of carreld: beside this program, then in PATH.
func FindDaemon() (string, error) {
	name := "carreld" + exeSuffix
	beside := ""
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		beside = filepath.Join(filepath.Dir(self), name)
		if fi, err := os.Stat(beside); err == nil && fi.Mode().IsRegular() {
			return beside, nil
		}
	}
	if p, err := lookPath(name); err == nil {
		return p, nil
	}
	return "", &Error{
		Code: "daemon_missing", Message: "start the daemon",
		Cause: fmt.Sprintf("there is no %s at %s, nor in PATH", name, beside),
		Cure:  "install carreld beside carrel (`make build` puts both in bin/)",
	}
}
