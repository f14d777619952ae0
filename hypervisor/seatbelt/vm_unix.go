//go:build unix

package seatbelt

import (
	"context"
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
)

// Bounds of a VM's life.
const (
	// killTimeout is how long a killed guest may take to be gone.
	killTimeout = 10 * time.Second
	// maxRounds is how often the guest's processes are looked for while they
	// are stopped: those that were started meanwhile are found the next time.
	maxRounds = 64
	// followEvery is how often the guest's processes are looked for while it
	// runs, so that one that leaves its parents is still known at the end.
	followEvery = time.Second
)

// command is what makes a guest run.
type command struct {
	argv, env []string
	// files are the first process's descriptors from 5 on; 3 is the boot
	// stream and 4 the carrier. They are closed when it has started.
	files []*os.File
}

// vm is one guest: a process and its descendants.
//
//	created ── Start ──> running <── Pause / Resume ──> paused
//	    └───── Close ───────┴── Kill, or its own end ──────┴──> gone
type vm struct {
	shares  []hypervisor.Share
	console func([]byte)
	streams *carrier
	// prepare is called once, at Start; way says whether the guest has a way out.
	prepare func(way bool) (command, error)
	// processes lists those of the user.
	processes func() ([]process, error)
	// remove removes what the guest leaves.
	remove func() error

	gone   chan struct{} // closed when the guest is gone
	reason error         // what Wait returns, set before

	signals sync.Mutex    // held over Pause, Resume and Kill
	reaped  bool          // the first process has been waited for: its number is free
	seen    map[int]int64 // the guest's processes as they were last seen; see family

	mu     sync.Mutex
	theirs ends      // until Start hands them on
	proc   *exec.Cmd // nil until started
	last   tail
	killed bool // by Kill or Close
	closed bool
}

// Start implements hypervisor.VM.
func (v *vm) Start(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	op := func(err error) error {
		var he *hypervisor.Error
		if errors.As(err, &he) {
			return err
		}
		return &hypervisor.Error{Op: "start the guest", Err: err}
	}
	switch {
	case v.closed || v.killed:
		return hypervisor.ErrGone
	case v.proc != nil:
		return op(errors.New("it was started before"))
	case ctx.Err() != nil:
		return op(context.Cause(ctx))
	}
	c, err := v.prepare(v.streams.listens(egressPort))
	defer func() {
		for _, f := range c.files {
			f.Close()
		}
	}()
	if err != nil {
		return op(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return op(err)
	}
	defer w.Close()
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.Dir = c.env, "/"
	cmd.Stdout, cmd.Stderr = w, w
	cmd.ExtraFiles = append([]*os.File{v.theirs.boot, v.theirs.calls}, c.files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		r.Close()
		return op(err)
	}
	v.proc = cmd
	v.theirs.close()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		v.drain(r)
	}()
	go v.watch(r, drained)
	return nil
}

// drain reads what the guest's first process prints.
func (v *vm) drain(r *os.File) {
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			v.last.add(buf[:n])
			if v.console != nil {
				v.console(buf[:n])
			}
		}
		if err != nil {
			return
		}
	}
}

// watch waits for the guest's first process, and ends what it leaves.
func (v *vm) watch(console *os.File, drained <-chan struct{}) {
	ended, followed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(followed)
		v.follow(ended)
	}()
	_ = v.proc.Wait() // its error is told by the state
	close(ended)
	<-followed
	v.signals.Lock()
	// The group's number is nobody else's as long as the group has a member.
	_ = unix.Kill(-v.proc.Process.Pid, unix.SIGKILL)
	v.reaped = true
	delete(v.seen, v.proc.Process.Pid)
	all, _ := v.stop() // those that were seen are all that can be found now
	kill(all)
	v.signals.Unlock()
	_ = console.SetReadDeadline(time.Now().Add(time.Second)) // a process that was missed may hold it open
	<-drained
	console.Close()
	v.streams.close()

	v.mu.Lock()
	defer v.mu.Unlock()
	ws, _ := v.proc.ProcessState.Sys().(syscall.WaitStatus)
	cause := ""
	switch {
	case v.killed:
	case ws.Signaled():
		cause = fmt.Sprintf("the guest's agent was killed by signal %d (%v)", ws.Signal(), ws.Signal())
	case ws.ExitStatus() != 0:
		cause = fmt.Sprintf("the guest's agent ended with status %d", ws.ExitStatus())
	}
	if cause != "" {
		v.reason = &hypervisor.GoneError{Cause: cause, Detail: v.last.text()}
	}
	close(v.gone)
}

// follow looks for the guest's processes until its first one has ended.
func (v *vm) follow(ended <-chan struct{}) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			v.signals.Lock()
			_ = v.look() // the next one may do better
			v.signals.Unlock()
		case <-ended:
			return
		}
	}
}

// look finds the guest's processes. signals is held.
func (v *vm) look() error {
	all, err := v.processes()
	if err != nil {
		return fmt.Errorf("list the processes: %w", err)
	}
	if v.seen == nil {
		v.seen = map[int]int64{}
	}
	for _, p := range all {
		if p.pid == v.proc.Process.Pid && !v.reaped {
			v.seen[p.pid] = p.began
		}
	}
	v.seen = family(all, v.seen)
	return nil
}

// stop stops the guest's processes, and those that they started meanwhile, and
// returns them. signals is held.
func (v *vm) stop() (map[int]bool, error) {
	stopped := map[int]bool{}
	for range maxRounds {
		if err := v.look(); err != nil {
			return stopped, err
		}
		more := false
		for pid := range v.seen {
			if !stopped[pid] {
				stopped[pid], more = true, true
				_ = unix.Kill(pid, unix.SIGSTOP) // it may have ended
			}
		}
		if !more {
			return stopped, nil
		}
	}
	return stopped, errors.New("its processes multiply faster than they can be stopped")
}

func kill(pids map[int]bool) {
	for pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// Dial implements hypervisor.VM.
func (v *vm) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	v.mu.Lock()
	closed, started := v.closed, v.proc != nil
	v.mu.Unlock()
	switch {
	case v.isGone() || closed:
		return nil, hypervisor.ErrGone
	case !started:
		return nil, hypervisor.ErrNotReady
	}
	return v.streams.dial(ctx, port)
}

// Listen implements hypervisor.VM. Whether the guest has a way out is decided
// at Start, by whether somebody takes its connections then.
func (v *vm) Listen(port uint32) (net.Listener, error) {
	if v.isGone() {
		return nil, hypervisor.ErrGone
	}
	return v.streams.listen(port)
}

// Mounts implements hypervisor.VM: every share is where it is on the host.
func (v *vm) Mounts() []hypervisor.Mount {
	var ms []hypervisor.Mount
	for _, s := range v.shares {
		ms = append(ms, hypervisor.Mount{Tag: s.Tag, Type: "none", GuestPath: s.GuestPath, ReadOnly: s.ReadOnly})
	}
	return ms
}

// Pause implements hypervisor.VM. It is a convenience: one of the guest's
// processes that was missed can let the others go on.
func (v *vm) Pause(context.Context) error {
	return v.running("pause the guest", func() error {
		_, err := v.stop()
		return err
	})
}

// Resume implements hypervisor.VM.
func (v *vm) Resume(context.Context) error {
	return v.running("resume the guest", func() error {
		if err := v.look(); err != nil {
			return err
		}
		for pid := range v.seen {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
		return nil
	})
}

// running does something to the guest's processes while there are any.
func (v *vm) running(op string, do func() error) error {
	v.mu.Lock()
	started := v.proc != nil
	v.mu.Unlock()
	v.signals.Lock()
	defer v.signals.Unlock()
	if !started || v.reaped {
		return hypervisor.ErrGone
	}
	if err := do(); err != nil {
		return &hypervisor.Error{Op: op, Err: err}
	}
	return nil
}

func (v *vm) isGone() bool {
	select {
	case <-v.gone:
		return true
	default:
		return false
	}
}

// Kill implements hypervisor.VM. The processes are stopped before any is
// killed, so that none gets away from its parents while they die.
func (v *vm) Kill() error {
	v.mu.Lock()
	v.killed = true
	started := v.proc != nil
	v.mu.Unlock()
	v.signals.Lock()
	defer v.signals.Unlock()
	if !started || v.reaped {
		return nil
	}
	all, err := v.stop()
	kill(all)
	_ = unix.Kill(-v.proc.Process.Pid, unix.SIGKILL)
	if err != nil {
		return &hypervisor.Error{Op: "end the guest", Err: err, Cure: "look for its processes with ps, and end them"}
	}
	return nil
}

// Wait implements hypervisor.VM. A guest that is never started is waited for
// until Close.
func (v *vm) Wait() error {
	<-v.gone
	return v.reason
}

// Close implements hypervisor.VM.
func (v *vm) Close() error {
	err := v.Kill()
	v.mu.Lock()
	first := !v.closed
	v.closed = true
	if first && v.proc == nil {
		v.theirs.close()
		v.streams.close()
		close(v.gone)
	}
	v.mu.Unlock()
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case <-v.gone:
	case <-t.C:
		return errors.Join(err, &hypervisor.Error{Op: "end the guest", Err: fmt.Errorf("it was killed and is not gone after %v", killTimeout), Cure: "it waits for a disk or a network file system that does not answer"})
	}
	if first {
		err = errors.Join(err, v.remove())
	}
	return err
}
