package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/qemu/vhostuser"
)

// Bounds of a VM's life.
const (
	// startTimeout is how long QEMU may take to set up its machine.
	startTimeout = 30 * time.Second
	// killTimeout is how long a killed QEMU may take to be gone. Only a
	// process that waits for a broken disk or network file system takes longer.
	killTimeout = 10 * time.Second
	// fileSlack is added to the largest file that QEMU may write, in bytes.
	fileSlack = 1 << 20
)

// VM is one QEMU process with its devices.
//
//	created ── Start ──> running <── Pause / Resume ──> paused
//	    └───── Close ───────┴── Kill, or its own end ──────┴──> gone
type VM struct {
	driver *Driver
	cfg    hypervisor.Config
	h      hypervisor.Handlers
	facts  facts
	spec   ConfineSpec

	vsock  *vhostuser.Vsock
	shares []hypervisor.ShareServer
	ours   []net.Conn // our ends of the socket pairs, until Start hands them on
	theirs []*os.File // QEMU's ends, in the order of Machine's descriptors

	gone   chan struct{} // closed when all of the guest is gone
	reason error         // what Wait returns, set before

	mu      sync.Mutex
	proc    *process // nil until started
	monitor *qmp
	started bool
	killed  bool   // by Kill or Close
	cause   string // why we killed it ourselves
	closed  bool
}

// guestCID is the guest's address on its vsock. The device belongs to one
// guest, so every guest has the same.
const guestCID = 3

func newVM(d *Driver, cfg hypervisor.Config, h hypervisor.Handlers, f facts, spec ConfineSpec) *VM {
	return &VM{driver: d, cfg: cfg, h: h, facts: f, spec: spec, vsock: vhostuser.NewVsock(guestCID), gone: make(chan struct{})}
}

// create makes the sockets and has the shares served. What it made before an
// error, Close removes.
func (v *VM) create(ctx context.Context) error {
	for _, name := range []string{"qmp", "console", "vsock"} {
		ours, theirs, err := socketPair(name)
		if err != nil {
			return &hypervisor.Error{Op: "create guest", Err: err}
		}
		v.ours, v.theirs = append(v.ours, ours), append(v.theirs, theirs)
	}
	devices := v.cfg.Shares[:Devices(v.cfg)]
	if len(devices) > 0 && v.h.Share == nil {
		return &hypervisor.Error{Op: "create guest", Err: errors.New("it has shares and nobody serves them")}
	}
	// The servers are processes, which start side by side.
	servers, errs := make([]hypervisor.ShareServer, len(devices)), make([]error, len(devices))
	var all sync.WaitGroup
	for i, s := range devices {
		all.Go(func() { servers[i], errs[i] = v.h.Share(ctx, i, s) })
	}
	all.Wait()
	for _, srv := range servers { // Close ends also those beside one that failed
		if srv != nil {
			v.shares = append(v.shares, srv)
		}
	}
	for i, s := range devices {
		if errs[i] == nil {
			errs[i] = v.serve(servers[i])
		}
		if errs[i] != nil {
			return &hypervisor.Error{Op: "serve " + s.Path, Err: errs[i]}
		}
	}
	return nil
}

// serve has a share served over a socket pair, whose other end is QEMU's.
func (v *VM) serve(srv hypervisor.ShareServer) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	server, device := os.NewFile(uintptr(fds[0]), "share"), os.NewFile(uintptr(fds[1]), "share")
	defer server.Close()
	v.theirs = append(v.theirs, device)
	return srv.Serve(hypervisor.VirtioFS, server)
}

// machine is how QEMU reaches the sockets of create.
func (v *VM) machine() Machine {
	const first = specFD + 1
	m := Machine{Version: v.facts.version, Arch: v.driver.opts.Arch, Accel: v.facts.accel.Name, QMP: first, Console: first + 1, Vsock: first + 2}
	for i := range Devices(v.cfg) {
		m.Shares = append(m.Shares, first+3+i)
	}
	if m.Accel == TCG && steadyCounter() {
		m.CounterKHz = counterKHz(v.driver.began, readClocks())
	}
	return m
}

// Start implements hypervisor.VM.
func (v *VM) Start(ctx context.Context) error {
	begun := time.Now()
	if err := v.launch(); err != nil {
		return &hypervisor.Error{Op: "start qemu", Err: err}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("qemu was not ready within %v", startTimeout))
	defer cancel()
	v.h.Note("qemu forked", begun)
	begun = time.Now()
	_, err := v.monitor.Greet(ctx)
	v.h.Note("qemu confined, greets", begun)
	if err == nil {
		return nil
	}
	v.mu.Lock()
	killed := v.killed
	v.mu.Unlock()
	if killed {
		<-v.gone
		return hypervisor.ErrGone
	}
	v.Kill()
	<-v.gone
	if words := v.proc.words(); words != "" && ctx.Err() == nil {
		err = errors.New(words)
	}
	return &hypervisor.Error{Op: "start qemu", Err: err, Cure: "carrel doctor"}
}

// launch starts the process and the goroutines that serve it; watch waits for
// them all.
func (v *VM) launch() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return hypervisor.ErrGone
	case v.started:
		return errors.New("it was started before")
	}
	spec := v.spec
	spec.Args = append([]string{v.driver.arch().program}, Args(v.cfg, v.machine())...)
	spec.ReadOnly = append(spec.ReadOnly, v.cfg.Kernel, v.cfg.Initrd, v.cfg.Root)
	spec.FileBytes = uint64(v.cfg.MemoryMiB)<<20 + fileSlack
	var disks []string
	if v.cfg.Scratch != "" {
		disks = append(disks, v.cfg.Scratch)
	}
	for _, vol := range v.cfg.Volumes {
		disks = append(disks, vol.Path)
	}
	for _, path := range disks {
		spec.ReadWrite = append(spec.ReadWrite, path)
		fi, err := os.Stat(path)
		if err != nil {
			return err
		}
		spec.FileBytes = max(spec.FileBytes, uint64(fi.Size()))
	}
	proc, err := startProcess(v.driver.opts.Shim, spec, v.theirs)
	if err != nil {
		return err
	}
	v.driver.noteCommandLine(append([]string{v.facts.binary}, spec.Args[1:]...))
	v.closeTheirs()
	v.started, v.proc, v.monitor = true, proc, newQMP(v.ours[0])
	console := make(chan string, 1)
	go func() { console <- drainConsole(v.ours[1], v.h.Console) }()
	device := make(chan error, 1)
	go func() {
		// It ends with QEMU: its socket ends then.
		err := v.vsock.Serve(context.Background(), v.ours[2].(*net.UnixConn))
		if err != nil {
			v.end("the vsock device stopped: " + err.Error())
		}
		device <- err
	}()
	go v.watch(console, device)
	return nil
}

// watch waits for QEMU's end, then for everything that served it.
func (v *VM) watch(console <-chan string, device <-chan error) {
	<-v.proc.done
	// The sockets' other ends are closed, so each of these ends by itself.
	<-v.monitor.done
	panicked := <-console
	<-device
	v.vsock.Close()
	v.monitor.Close()
	v.ours[1].Close()
	v.ours[2].Close()

	v.mu.Lock()
	defer v.mu.Unlock()
	end := v.proc.end("qemu")
	switch {
	case v.cause != "":
		v.reason = &hypervisor.GoneError{Cause: v.cause}
	case v.killed:
	case end != "":
		v.reason = &hypervisor.GoneError{Cause: end, Detail: v.proc.words()}
	case panicked != "":
		v.reason = &hypervisor.GoneError{Cause: "the guest ended itself", Detail: panicked}
	}
	close(v.gone)
}

// Dial implements hypervisor.VM.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if v.ended() {
		return nil, hypervisor.ErrGone
	}
	c, err := v.vsock.Dial(ctx, port)
	if err != nil && v.ended() {
		return nil, hypervisor.ErrGone
	}
	return c, err
}

// Listen implements hypervisor.VM.
func (v *VM) Listen(port uint32) (net.Listener, error) {
	if v.ended() {
		return nil, hypervisor.ErrGone
	}
	return v.vsock.Listen(port)
}

// Mounts implements hypervisor.VM: the first shares are virtio-fs devices, and
// those for which there is no slot are streams that the agent dials.
func (v *VM) Mounts() []hypervisor.Mount {
	var ms []hypervisor.Mount
	for i, s := range v.cfg.Shares {
		kind := "virtiofs"
		if i >= Devices(v.cfg) {
			kind = "fuse"
		}
		ms = append(ms, hypervisor.Mount{Tag: s.Tag, Type: kind, GuestPath: s.GuestPath, ReadOnly: s.ReadOnly, Overlay: s.Overlay, Layer: s.Layer})
	}
	return ms
}

// Pause implements hypervisor.VM.
func (v *VM) Pause(ctx context.Context) error { return v.command(ctx, "pause the guest", "stop") }

// Resume implements hypervisor.VM.
func (v *VM) Resume(ctx context.Context) error { return v.command(ctx, "resume the guest", "cont") }

func (v *VM) command(ctx context.Context, op, command string) error {
	v.mu.Lock()
	m := v.monitor
	v.mu.Unlock()
	if m == nil || v.ended() {
		return hypervisor.ErrGone
	}
	if _, err := m.Do(ctx, command); err != nil {
		if v.ended() {
			return hypervisor.ErrGone
		}
		return &hypervisor.Error{Op: op, Err: err}
	}
	return nil
}

func (v *VM) ended() bool {
	select {
	case <-v.gone:
		return true
	default:
		return false
	}
}

// Kill implements hypervisor.VM. QEMU gets no chance to refuse: a QEMU whose
// back end hangs ignores every gentler signal.
func (v *VM) Kill() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.killed = true
	if v.started {
		v.proc.kill()
	}
	return nil
}

// end kills the guest because of a failure on our side.
func (v *VM) end(cause string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.killed && v.cause == "" {
		v.cause = cause
	}
	v.proc.kill()
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
	started := v.started
	v.mu.Unlock()
	if started {
		t := time.NewTimer(killTimeout)
		defer t.Stop()
		select {
		case <-v.gone:
		case <-t.C:
			return &hypervisor.Error{Op: "end qemu", Err: fmt.Errorf("process %d was killed and is not gone after %v", v.proc.cmd.Process.Pid, killTimeout), Cure: "it waits for a disk or a network file system that does not answer"}
		}
	}
	if !first {
		<-v.gone
		return nil
	}
	if !started {
		v.vsock.Close()
		for _, c := range v.ours {
			c.Close()
		}
		v.closeTheirs()
		close(v.gone)
	}
	var errs []error
	for _, s := range v.shares {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (v *VM) closeTheirs() {
	for _, f := range v.theirs {
		f.Close()
	}
	v.theirs = nil
}
