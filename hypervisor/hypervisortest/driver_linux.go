package hypervisortest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// bootPort is the port of the host that the guest's one boot stream reaches,
// wire.PortBoot.
const bootPort = 64

// Options are what the test driver is made from.
type Options struct {
	// Agent is a command that serves as the guest: {"carrel-agent", "serve"}.
	// It gets its boot stream as descriptor 3 and, over descriptor 4, one
	// connected socket for each Dial, with the port as 4 bytes, big endian.
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
	if err := cfg.Check(); err != nil {
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	if len(d.opts.Agent) == 0 {
		return nil, &hypervisor.Error{Op: "create guest", Err: errors.New("the test driver was given no agent")}
	}
	return &vm{opts: d.opts, cfg: cfg, h: h, gone: make(chan struct{}), listeners: map[uint32]*listener{}}, nil
}

type vm struct {
	opts Options
	cfg  hypervisor.Config
	h    hypervisor.Handlers

	gone   chan struct{} // closed when the process is gone and its output read
	reason error         // set before

	mu        sync.Mutex
	cmd       *exec.Cmd
	ended     chan struct{} // closed when the process has been waited for
	calls     *os.File
	boot      net.Conn // until a listener takes it
	listeners map[uint32]*listener
	killed    bool
	closed    bool
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
	boot, theirBoot, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer boot.Close()
	defer theirBoot.Close()
	calls, theirCalls, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return err
	}
	defer theirCalls.Close()
	stream, err := net.FileConn(boot)
	if err != nil {
		calls.Close()
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		stream.Close()
		calls.Close()
		return err
	}
	defer w.Close()
	cmd := exec.Command(v.opts.Agent[0], append(v.opts.Agent[1:len(v.opts.Agent):len(v.opts.Agent)], "--boot-fd=3", "--call-fd=4")...)
	cmd.ExtraFiles = []*os.File{theirBoot, theirCalls}
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
		stream.Close()
		calls.Close()
		r.Close()
		return &hypervisor.Error{Op: "start guest", Err: err}
	}
	v.cmd, v.ended, v.calls, v.boot = cmd, ended, calls, stream
	if l := v.listeners[bootPort]; l != nil {
		l.give(&v.boot)
	}
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
	v.calls.Close()
	if v.boot != nil {
		v.boot.Close()
		v.boot = nil
	}
	for _, l := range v.listeners {
		l.end()
	}
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
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ours, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	// A guest that takes no calls fills the socket's queue: then the port is
	// as good as closed.
	err = unix.Sendmsg(int(v.calls.Fd()), binary.BigEndian.AppendUint32(nil, port), unix.UnixRights(int(theirs.Fd())), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	switch {
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EAGAIN):
		return nil, fmt.Errorf("dial port %d of the guest: %w", port, unix.ECONNREFUSED)
	case err != nil:
		return nil, fmt.Errorf("dial port %d of the guest: %w", port, err)
	}
	return net.FileConn(ours)
}

// Listen implements hypervisor.VM. Only the boot port is ever dialled.
func (v *vm) Listen(port uint32) (net.Listener, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if isClosed(v.gone) || v.closed {
		return nil, hypervisor.ErrGone
	}
	if l := v.listeners[port]; l != nil && !isClosed(l.done) {
		return nil, fmt.Errorf("listen on port %d: %w", port, unix.EADDRINUSE)
	}
	l := &listener{port: port, conns: make(chan net.Conn, 1), done: make(chan struct{})}
	v.listeners[port] = l
	if port == bootPort && v.boot != nil {
		l.give(&v.boot)
	}
	return l, nil
}

// Mounts implements hypervisor.VM: there is nothing to mount.
func (v *vm) Mounts() []hypervisor.Mount {
	var ms []hypervisor.Mount
	for _, s := range v.cfg.Shares {
		ms = append(ms, hypervisor.Mount{Tag: s.Tag, Type: "none", GuestPath: s.GuestPath, ReadOnly: s.ReadOnly, Overlay: s.Overlay})
	}
	return ms
}

// Pause implements hypervisor.VM. It stops the agent, not its tasks.
func (v *vm) Pause(context.Context) error { return v.signal(syscall.SIGSTOP) }

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
		for _, l := range v.listeners {
			l.end()
		}
		close(v.gone)
	}
	v.closed = true
	v.mu.Unlock()
	<-v.gone
	return nil
}

// listener takes at most one stream.
type listener struct {
	port  uint32
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// give hands a stream over; called with vm.mu held.
func (l *listener) give(c *net.Conn) {
	l.conns <- *c // room for the one that there is
	*c = nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "test", Err: net.ErrClosed}
	}
}

func (l *listener) end() {
	l.once.Do(func() { close(l.done) })
	select {
	case c := <-l.conns:
		c.Close()
	default:
	}
}

func (l *listener) Close() error { l.end(); return nil }

func (l *listener) Addr() net.Addr { return addr(l.port) }

type addr uint32

func (a addr) Network() string { return "test" }
func (a addr) String() string  { return fmt.Sprintf("host:%d", uint32(a)) }

// pair makes a connected pair of sockets.
func pair(kind int) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest"), nil
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

var _ io.Closer = (*vm)(nil)
