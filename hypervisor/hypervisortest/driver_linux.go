package hypervisortest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/passing"
)

// Options are what the test driver is made from.
type Options struct {
	// Agent is a command that serves as the guest: {"carrel-agent", "serve"}.
	// It gets its boot stream as descriptor 3, and as descriptor 4 the socket
	// that carries all others (package passing).
	Agent []string
}

// Driver runs the guest's agent as an ordinary process. It is for tests: there
// is no boundary, shares are not mounted, and every port is the agent's.
type Driver struct{ opts Options }

// New returns a test driver.
func New(o Options) *Driver { return &Driver{opts: o} }

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "test" }

// Create implements hypervisor.Driver.
func (d *Driver) Create(_ context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (hypervisor.VM, error) {
	if err := cfg.CheckWithoutDisks(); err != nil {
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	if len(d.opts.Agent) == 0 {
		return nil, &hypervisor.Error{Op: "create guest", Err: errors.New("the test driver was given no agent")}
	}
	streams, theirs, err := passing.New()
	if err != nil {
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	return &vm{opts: d.opts, cfg: cfg, h: h, gone: make(chan struct{}), streams: streams, theirs: theirs}, nil
}

type vm struct {
	opts Options
	cfg  hypervisor.Config
	h    hypervisor.Handlers

	gone   chan struct{} // closed when the process is gone and its output read
	reason error         // set before

	streams *passing.Host

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process has been waited for
	theirs passing.Guest // until Start hands them on
	killed bool
	closed bool
}

// Start implements hypervisor.VM.
func (v *vm) Start(context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return hypervisor.ErrGone
	case v.cmd != nil:
		return &hypervisor.Error{Op: "start guest", Err: errors.New("it was started before")}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	cmd := exec.Command(v.opts.Agent[0], append(v.opts.Agent[1:len(v.opts.Agent):len(v.opts.Agent)], "--boot-fd=3", "--call-fd=4")...)
	cmd.ExtraFiles = []*os.File{v.theirs.Boot, v.theirs.Calls}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread() // for the guest's life: the kernel's parent is a thread
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		r.Close()
		return &hypervisor.Error{Op: "start guest", Err: err}
	}
	v.cmd, v.ended = cmd, ended
	v.theirs.Close()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		v.drain(r)
	}()
	go v.watch(r, drained)
	return nil
}

func (v *vm) drain(r *os.File) {
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && v.h.Console != nil {
			v.h.Console(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// watch waits for the process and says why it ended.
func (v *vm) watch(console *os.File, drained <-chan struct{}) {
	<-v.ended
	// A task that got away may hold the console open.
	console.SetReadDeadline(time.Now().Add(time.Second))
	<-drained
	console.Close()
	v.mu.Lock()
	defer v.mu.Unlock()
	ws := v.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case v.killed:
	case ws.Signaled():
		v.reason = &hypervisor.GoneError{Cause: fmt.Sprintf("the guest was killed by signal %d", ws.Signal())}
	case ws.ExitStatus() != 0:
		v.reason = &hypervisor.GoneError{Cause: fmt.Sprintf("the guest ended with status %d", ws.ExitStatus())}
	}
	v.streams.Close()
	close(v.gone)
}

// Dial implements hypervisor.VM.
func (v *vm) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if isClosed(v.gone) || v.closed {
		return nil, hypervisor.ErrGone
	}
	if v.cmd == nil {
		return nil, hypervisor.ErrNotReady
	}
	return v.streams.Dial(ctx, port)
}

// Listen implements hypervisor.VM.
func (v *vm) Listen(port uint32) (net.Listener, error) {
	if isClosed(v.gone) {
		return nil, hypervisor.ErrGone
	}
	return v.streams.Listen(port)
}

// Mounts implements hypervisor.VM: there is nothing to mount.
func (v *vm) Mounts() []hypervisor.Mount {
	var ms []hypervisor.Mount
	for _, s := range v.cfg.Shares {
		ms = append(ms, hypervisor.Mount{Tag: s.Tag, Type: "none", GuestPath: s.GuestPath, ReadOnly: s.ReadOnly, Overlay: s.Overlay, Layer: s.Layer})
	}
	return ms
}

// Pause implements hypervisor.VM. It stops the agent, not its tasks.
func (v *vm) Pause(ctx context.Context) error {
	if err := v.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for !stopped(v.cmd.Process.Pid) { // v.cmd stands since signal succeeded
		select {
		case <-time.After(time.Millisecond):
		case <-v.gone:
			return hypervisor.ErrGone
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Resume implements hypervisor.VM.
func (v *vm) Resume(context.Context) error { return v.signal(syscall.SIGCONT) }

func (v *vm) signal(s syscall.Signal) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cmd == nil || isClosed(v.gone) {
		return hypervisor.ErrGone
	}
	return v.cmd.Process.Signal(s)
}

// Kill implements hypervisor.VM.
func (v *vm) Kill() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.killed = true
	if v.cmd != nil && !isClosed(v.ended) {
		killTree(v.cmd.Process)
	}
	return nil
}

// Wait implements hypervisor.VM.
func (v *vm) Wait() error {
	<-v.gone
	return v.reason
}

// Close implements hypervisor.VM.
func (v *vm) Close() error {
	v.Kill()
	v.mu.Lock()
	if v.cmd == nil && !v.closed {
		v.theirs.Close()
		v.streams.Close()
		close(v.gone)
	}
	v.closed = true
	v.mu.Unlock()
	<-v.gone
	return nil
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
