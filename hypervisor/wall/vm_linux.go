package wall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/passing"
)

// Bounds of a VM's life.
const (
	// killGrace is how long the wall may take to end its guest before it is
	// killed itself, and the guest with it. A wall that is killed while it starts its
	// guest has been seen to leave a stream open on a busy machine, so this is more
	// than a start takes there.
	killGrace = 5 * time.Second
	// killTimeout is how long a killed guest may take to be gone. Only a
	// process that waits for a broken disk or network file system takes longer.
	killTimeout = 10 * time.Second
	// commandTimeout bounds Pause and Resume.
	commandTimeout = 10 * time.Second
)

// Options are what a VM is made from.
type Options struct {
	// Shim is a command that calls the driver's wall process.
	Shim []string
	// Spec is what that is told.
	Spec Spec
	// Sys are the attributes with which it starts, or nil.
	Sys *syscall.SysProcAttr
	// Started is told, when the guest runs, what holds it and the program's
	// command line.
	Started func(notes, argv []string)
}

// New returns a guest that does not run yet.
func New(ctx context.Context, cfg hypervisor.Config, h hypervisor.Handlers, o Options) (*VM, error) {
	servers, err := serveDevices(ctx, cfg, h, o.Spec.Shares)
	if err != nil {
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	streams, theirs, err := passing.New()
	if err != nil {
		closeServers(servers)
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	return &VM{opts: o, cfg: cfg, h: h, streams: streams, theirs: theirs, servers: servers, gone: make(chan struct{})}, nil
}

// VM is one guest: a wall process, and beneath it the sandbox and the agent.
//
//	created ── Start ──> running <── Pause / Resume ──> paused
//	    └───── Close ───────┴── Kill, or its own end ──────┴──> gone
type VM struct {
	cfg     hypervisor.Config
	h       hypervisor.Handlers
	opts    Options
	streams *passing.Host
	servers []hypervisor.ShareServer // by share; nil where the wall has no part

	gone   chan struct{} // closed when all of the guest is gone
	reason error         // what Wait returns, set before

	command sync.Mutex // held over Pause and Resume
	answers chan Word  // to the last command

	mu      sync.Mutex
	asked   int           // commands
	heard   int           // answers: there is one to each command, in their order
	theirs  passing.Guest // until Start hands them on
	proc    *exec.Cmd     // nil until started
	ended   chan struct{} // closed when the wall process has been waited for
	control *net.UnixConn
	console Tail
	killed  bool // by Kill or Close
	closed  bool
}

// Start implements hypervisor.VM.
func (v *VM) Start(ctx context.Context) error {
	started, err := v.launch()
	if err != nil {
		if errors.Is(err, hypervisor.ErrGone) {
			return err
		}
		return &hypervisor.Error{Op: "start the guest", Err: err}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*StartTimeout, fmt.Errorf("the guest's wall did not stand within %v", 2*StartTimeout))
	defer cancel()
	select {
	case err = <-started:
	case <-ctx.Done():
		v.Kill()
		closeServers(v.servers) // what waits for one has an error then
		<-v.gone
		return &hypervisor.Error{Op: "start the guest", Err: context.Cause(ctx)}
	}
	if err == nil {
		return nil
	}
	<-v.gone
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.killed {
		return hypervisor.ErrGone
	}
	if words := v.console.Text(); words != "" {
		var he *hypervisor.Error
		if errors.As(err, &he) {
			he.Err = fmt.Errorf("%w: %s", he.Err, words)
		}
	}
	return err
}

// launch starts the wall process. The channel gets the result of the guest's
// start.
func (v *VM) launch() (<-chan error, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed || v.killed:
		return nil, hypervisor.ErrGone
	case v.proc != nil:
		return nil, errors.New("it was started before")
	case len(v.opts.Shim) == 0:
		return nil, errors.New("no command that builds the wall is configured")
	}
	b, err := json.Marshal(v.opts.Spec)
	if err != nil {
		return nil, err
	}
	spec, err := Memory("spec", b)
	if err != nil {
		return nil, err
	}
	defer spec.Close()
	control, theirControl, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer theirControl.Close()
	r, w, err := os.Pipe()
	if err != nil {
		control.Close()
		return nil, err
	}
	defer w.Close()
	shim := v.opts.Shim
	cmd := exec.Command(shim[0], shim[1:]...)
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdout, cmd.Stderr = w, w
	cmd.ExtraFiles = []*os.File{spec, theirControl, v.theirs.Boot, v.theirs.Calls}
	// It does not die with us at once: it notices, and removes its groups.
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if v.opts.Sys != nil {
		*cmd.SysProcAttr = *v.opts.Sys
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		control.Close()
		r.Close()
		return nil, fmt.Errorf("start %s: %w", shim[0], err)
	}
	v.proc, v.control, v.ended, v.answers = cmd, control, make(chan struct{}), make(chan Word, 1)
	v.theirs.Close()
	go func() {
		cmd.Wait() // its error is told by the state
		close(v.ended)
	}()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		v.drain(r)
	}()
	started := make(chan error, 1)
	go v.watch(started, r, drained)
	return started, nil
}

// drain reads what the wall, the sandbox and the agent print.
func (v *VM) drain(r *os.File) {
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			v.console.Add(buf[:n])
			if v.h.Console != nil {
				v.h.Console(buf[:n])
			}
		}
		if err != nil {
			return
		}
	}
}

// watch reads what the wall says until its end, and then waits for everything
// of the guest.
func (v *VM) watch(started chan<- error, console *os.File, drained <-chan struct{}) {
	var pidfds []int
	cause, told := "", false
	for {
		word, fds, err := readWord(v.control)
		if err != nil {
			break
		}
		switch {
		case word.Started && !told:
			pidfds, told = fds, true
			v.opts.Started(word.Notes, word.Command)
			v.steps(word.Steps)
			started <- nil
		case word.Device > 0:
			v.device(word.Device-1, fds)
		case word.Gone:
			cause = word.Cause
		case word.Done:
			v.answered(*word)
		case word.Err != "" && !told:
			told = true
			started <- word.failure()
		}
		if word.Gone {
			break
		}
	}
	<-v.ended
	for _, fd := range pidfds {
		// A wall that was killed leaves its guest to die, which takes a moment.
		AwaitPidfd(fd)
		unix.Close(fd)
	}
	console.SetReadDeadline(time.Now().Add(time.Second)) // a task may hold it open, where it does not die
	<-drained
	console.Close()
	v.streams.Close()
	v.control.Close()

	v.mu.Lock()
	defer v.mu.Unlock()
	ws, _ := v.proc.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case v.killed:
	case ws.Signaled():
		cause = fmt.Sprintf("the guest's wall was killed by signal %d (%v)", ws.Signal(), ws.Signal())
	case cause == "" && ws.ExitStatus() != 0:
		cause = fmt.Sprintf("the guest's wall ended with status %d", ws.ExitStatus())
	}
	if cause != "" && !v.killed {
		v.reason = &hypervisor.GoneError{Cause: cause, Detail: v.console.Text()}
	}
	close(v.gone)
	if !told {
		started <- errText("the guest's wall ended while it was built")
	}
}

// steps passes on what the start was made of.
func (v *VM) steps(list []Step) {
	for _, s := range list {
		if v.h.Took != nil {
			v.h.Took(s.Name, time.Unix(0, s.Begin), time.Unix(0, s.End))
		}
	}
}

// maxPidfds is how many descriptors come with a word.
const maxPidfds = 8

// readWord reads one message of the wall, and the descriptors that came with it.
func readWord(c *net.UnixConn) (*Word, []int, error) {
	b, oob := make([]byte, 128<<10), make([]byte, unix.CmsgSpace(4*maxPidfds))
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, net.ErrClosed
	}
	var fds []int
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		fds, _ = unix.ParseUnixRights(&msgs[0]) // other messages bring none
	}
	word := new(Word)
	return word, fds, json.Unmarshal(b[:n], word)
}

func controlPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}

// Dial implements hypervisor.VM.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	v.mu.Lock()
	closed, started := v.closed, v.proc != nil
	v.mu.Unlock()
	switch {
	case v.isGone() || closed:
		return nil, hypervisor.ErrGone
	case !started:
		return nil, hypervisor.ErrNotReady
	}
	return v.streams.Dial(ctx, port)
}

// Listen implements hypervisor.VM.
func (v *VM) Listen(port uint32) (net.Listener, error) {
	if v.isGone() {
		return nil, hypervisor.ErrGone
	}
	return v.streams.Listen(port)
}

// Mounts implements hypervisor.VM: a share is in the guest already, under its
// number, or the agent dials for it.
func (v *VM) Mounts() []hypervisor.Mount {
	var ms []hypervisor.Mount
	for i, s := range v.cfg.Shares {
		kind := "bind"
		if v.opts.Spec.Shares[i].By == ByStream {
			kind = "fuse"
		}
		ms = append(ms, hypervisor.Mount{Tag: s.Tag, Type: kind, GuestPath: s.GuestPath, ReadOnly: s.ReadOnly, Overlay: s.Overlay, Layer: s.Layer})
	}
	return ms
}

func (v *VM) isGone() bool {
	select {
	case <-v.gone:
		return true
	default:
		return false
	}
}

// Kill implements hypervisor.VM. The wall ends the guest and removes its
// groups; if it does not, the guest ends with it.
func (v *VM) Kill() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.killed || v.proc == nil {
		v.killed = true
		return nil
	}
	v.killed = true
	v.control.CloseWrite() // fails only when the wall is gone
	proc, ended := v.proc.Process, v.ended
	t := time.AfterFunc(killGrace, func() { proc.Kill() })
	go func() { // ends with the wall
		<-ended
		t.Stop()
	}()
	return nil
}

// Wait implements hypervisor.VM. A guest that is never started is waited for
// until Close.
func (v *VM) Wait() error {
	<-v.gone
	return v.reason
}

// Close implements hypervisor.VM.
func (v *VM) Close() error {
	v.Kill()
	v.mu.Lock()
	first := !v.closed
	v.closed = true
	started := v.proc != nil
	if first && !started {
		v.theirs.Close()
		v.streams.Close()
		close(v.gone)
	}
	v.mu.Unlock()
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case <-v.gone:
		return closeServers(v.servers)
	case <-t.C:
		closeServers(v.servers) // it may be one of theirs that it waits for
		return &hypervisor.Error{Op: "end the guest", Err: fmt.Errorf("it was killed and is not gone after %v", killTimeout), Cure: "it waits for a disk or a network file system that does not answer"}
	}
}
