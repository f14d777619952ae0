//go:build unix

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// BesideOptions are what an agent gets from the driver of its wall.
type BesideOptions struct {
	// Boot is the boot stream, Calls the stream of messages over which all
	// others are passed (see [passed]).
	Boot, Calls *os.File
	// Proxy is a listener on the loopback for the guest's proxy, or nil: then
	// there is no way out.
	Proxy *os.File
	// NewProxy makes that proxy: proxy.New of agent/proxy. It comes in as a value
	// because that package brings net/http, which no machine's agent has a use for
	// and each would set up as it boots.
	NewProxy func(net.Listener, func(context.Context) (net.Conn, error)) (Proxy, error)
	// Dir is an absolute folder of the guest for what the agent writes.
	Dir string
}

// Proxy takes the connections of one guest to the host: a *proxy.Proxy.
type Proxy interface {
	// Serve takes connections until Close, or until ctx or the listener ends.
	Serve(ctx context.Context) error
	// Env is NAME=value for the programs of one task.
	Env(task string) []string
	Close() error
}

// Beside is an agent that runs behind a wall beside its tasks, as one of the
// host's own processes: no machine, no mounts, no users. What its own
// environment says of HOME, PATH and the like holds for its tasks. It returns at
// the guest's end.
func Beside(ctx context.Context, o BesideOptions) error {
	unix.Umask(0o022)
	// Heard and not listened to, no signal of a task but KILL ends the guest.
	signal.Notify(make(chan os.Signal, 1))
	return runBeside(ctx, o)
}

func runBeside(ctx context.Context, o BesideOptions) (err error) {
	b := &beside{dir: o.Dir, env: os.Environ(), newProxy: o.NewProxy}
	defer b.specs.Wait()
	defer b.close()
	if o.Proxy != nil {
		b.listener, err = net.FileListener(o.Proxy)
		_ = o.Proxy.Close()
		if err != nil {
			return fmt.Errorf("the proxy's listener: %w", err)
		}
	}
	if !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("the guest's folder %.200q is not absolute", o.Dir)
	}
	if err := os.Mkdir(o.Dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	stream, err := fileConn(o.Boot)
	if err != nil {
		return fmt.Errorf("boot stream: %w", err)
	}
	host, err := newStreamed(o.Calls)
	if err != nil {
		_ = stream.Close()
		return fmt.Errorf("socket for streams: %w", err)
	}
	defer host.wait()
	return New(Options{
		Boot: stream, Listener: host, DialHost: host.dial, beside: b,
		Limitless: true, Refusals: filepath.Join(o.Dir, refusalsName),
	}).Run(ctx)
}

// Files of the agent in its folder.
const (
	refusalsName = "refusals.log"
	trustName    = "trust.pem"
	bundleName   = "certificates.pem"
	gitName      = "gitconfig"
)

// beside is what such an agent has.
type beside struct {
	dir string
	// env is the agent's own.
	env []string

	// listener is the proxy's, until there is one. Both may be nil.
	listener net.Listener
	newProxy func(net.Listener, func(context.Context) (net.Conn, error)) (Proxy, error)
	proxy    Proxy
	group    sync.WaitGroup
	// specs are the pipes that are being filled.
	specs sync.WaitGroup
}

// start begins to take the guest's connections to the host.
func (b *beside) start(ctx context.Context, dial func(context.Context, uint32) (net.Conn, error), broken func(error)) error {
	p, err := b.newProxy(b.listener, func(ctx context.Context) (net.Conn, error) { return dial(ctx, wire.PortEgress) })
	if err != nil {
		return err
	}
	b.proxy = p
	b.group.Go(func() {
		if err := p.Serve(ctx); err != nil {
			broken(fmt.Errorf("the guest's way out is broken: %w", err))
		}
	})
	return nil
}

// close ends the way out.
func (b *beside) close() {
	switch {
	case b.proxy != nil:
		_ = b.proxy.Close()
	case b.listener != nil:
		_ = b.listener.Close()
	}
	b.group.Wait()
}

// taskEnv are variables for one task.
func (b *beside) taskEnv(task string) []string {
	if b.proxy == nil {
		return nil
	}
	return b.proxy.Env(task)
}

// account is the one user there is.
func (b *beside) account(who string) (*account, error) {
	acct := &account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), name: os.Getenv("USER"), home: os.Getenv("HOME"), shell: "/bin/sh"}
	if acct.name == "" {
		acct.name = strconv.Itoa(os.Geteuid())
	}
	if !filepath.IsAbs(acct.home) {
		acct.home = "/"
	}
	if who != "" && who != acct.name && who != strconv.Itoa(os.Geteuid()) {
		return nil, fmt.Errorf("there is no user %.64q behind this wall: everything runs as %.64s (leave the user out)", who, acct.name)
	}
	return acct, nil
}

// describe returns a pipe with b in it. There is no file that a task could not
// read, and it ends with the stage.
func (b *beside) describe(spec []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b.specs.Go(func() {
		_, _ = w.Write(spec) // a stage that is gone says so itself
		_ = w.Close()
	})
	return r, nil
}
