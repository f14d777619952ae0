package hcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/Microsoft/go-winio"
	"github.com/Microsoft/go-winio/pkg/guid"
	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of a VM's life.
const (
	// createLimit and startLimit are how long the service may take.
	createLimit = 30 * time.Second
	startLimit  = 30 * time.Second
	// commandLimit is for the other operations.
	commandLimit = 10 * time.Second
	// killLimit is how long an ended guest may take to be gone.
	killLimit = 30 * time.Second
	// consoleGrace is how long a console may outlive its guest.
	consoleGrace = 5 * time.Second
	// maxStreams bounds the streams of a guest, so that it cannot take all of
	// the keeper's handles.
	maxStreams = 1024
)

// Results that the driver acts on.
const (
	// alreadyStopped and notFound answer who ends a guest that has ended.
	alreadyStopped HRESULT = 0x80370110
	notFound       HRESULT = 0x8037010e
	// disconnected is how the service says that it ends itself.
	disconnected HRESULT = 0x8037011e
)

// VM is one compute system.
//
//	created ── Start ──> running <── Pause / Resume ──> paused
//	    └───── Close ───────┴── Kill, or its own end ──────┴──> gone
type VM struct {
	driver   *Driver
	cfg      hypervisor.Config
	h        hypervisor.Handlers
	id, user string

	system  *system
	address guid.GUID // of its sockets
	console net.Listener
	files   []string // that the worker process opens
	granted []string // those to which it has access
	made    []string // of ours, a folder before what is in it

	gone   chan struct{} // closed when all of the guest is gone
	reason error         // what Wait returns, set before

	mu      sync.Mutex
	started bool // Start was called
	running bool
	killed  bool // by Kill or Close
	closed  bool
	open    map[io.Closer]bool // streams and listeners; nil when the guest is gone
}

func newVM(d *Driver, cfg hypervisor.Config, h hypervisor.Handlers, id, user string) *VM {
	return &VM{driver: d, cfg: cfg, h: h, id: id, user: user, gone: make(chan struct{}), open: map[io.Closer]bool{}}
}

// create has the service make the system. What it made before an error, Close
// removes.
func (v *VM) create(ctx context.Context) error {
	begun := time.Now()
	m, err := v.place()
	if err != nil {
		return err
	}
	v.h.Note("virtual disks made", begun)
	document, err := Document(v.cfg, m)
	if err != nil {
		return err
	}
	for _, f := range v.files {
		if err := access(hcsGrantVMAccess, v.id, f); err != nil {
			return err
		}
		v.granted = append(v.granted, f)
	}
	if v.console, err = v.driver.carry.Pipe(m.Console, Descriptor(v.user)); err != nil {
		return fmt.Errorf("make the guest's console: %w", err)
	}
	begun = time.Now()
	if v.system, err = createSystem(ctx, v.id, document, createLimit); err != nil {
		return err
	}
	v.h.Note("compute system made", begun)
	properties, err := v.system.properties(ctx, commandLimit)
	if err != nil {
		return err
	}
	v.address, err = runtimeID(properties)
	return err
}

// runtimeID reads the address of the guest's sockets out of its properties.
func runtimeID(properties string) (guid.GUID, error) {
	var p struct{ RuntimeId string }
	if err := json.Unmarshal([]byte(properties), &p); err != nil {
		return guid.GUID{}, fmt.Errorf("the guest's properties: %w", err)
	}
	g, err := guid.FromString(p.RuntimeId)
	if err != nil {
		return guid.GUID{}, fmt.Errorf("the guest's address %.60q: %w", p.RuntimeId, err)
	}
	if slices.Contains([]guid.GUID{
		winio.HvsockGUIDWildcard(), winio.HvsockGUIDBroadcast(), winio.HvsockGUIDChildren(),
		winio.HvsockGUIDParent(), winio.HvsockGUIDLoopback(), winio.HvsockGUIDSiloHost(),
	}, g) {
		return guid.GUID{}, fmt.Errorf("the guest's address %v is not that of one guest", g)
	}
	return g, nil
}

// Start implements hypervisor.VM.
func (v *VM) Start(ctx context.Context) error {
	v.mu.Lock()
	switch {
	case v.closed || v.killed:
		v.mu.Unlock()
		return hypervisor.ErrGone
	case v.started:
		v.mu.Unlock()
		return &hypervisor.Error{Op: "start guest", Err: errors.New("it was started before")}
	}
	v.started = true
	v.mu.Unlock()

	console := v.drain()
	begun := time.Now()
	err := v.system.do(ctx, hcsStartComputeSystem, startLimit)
	v.h.Note("compute system started", begun)
	v.mu.Lock()
	killed := v.killed
	v.running = err == nil
	v.mu.Unlock()
	if err == nil {
		go v.watch(console)
		return nil
	}
	if !killed {
		v.terminate()
	}
	v.finish(console, "")
	if killed {
		return hypervisor.ErrGone
	}
	return failed("start guest", err)
}

// words is a console that is drained, until it ends or is told to.
type words struct {
	stop     context.CancelFunc
	panicked chan string
}

func (v *VM) drain() words {
	ctx, stop := context.WithCancel(context.Background())
	w := words{stop, make(chan string, 1)}
	go func() { w.panicked <- drainConsole(ctx, v.console, v.h.Console) }()
	return w
}

// end returns the line of the kernel's panic, if there is one, when all is read.
// The worker process ends with its guest; one that does not is not waited for.
func (w words) end() string {
	t := time.AfterFunc(consoleGrace, w.stop)
	defer w.stop()
	defer t.Stop()
	return <-w.panicked
}

// watch waits for the guest's end.
func (v *VM) watch(console words) {
	document, err := v.system.waitExit()
	v.finish(console, ending(document, err))
}

// ending says how a guest ended, by what the service says; empty: in its own way.
func ending(document string, err error) string {
	var f *Failure
	if errors.As(err, &f) {
		if f.Result.known() == disconnected {
			return "the Host Compute Service ended, and the guest with it"
		}
		return "the guest is lost: " + f.Error()
	}
	var status struct {
		Status   int32
		ExitType string
	}
	if err := json.Unmarshal([]byte(document), &status); err != nil {
		return "the guest ended, and the service does not say how"
	}
	if h := HRESULT(uint32(status.Status)); h.Failed() {
		return "the guest ended: " + (&Failure{Call: "its exit", Result: h}).Error()
	}
	switch status.ExitType {
	case "GracefulExit", "Reboot", "ForcedExit": // StopOnReset makes a reset an end
		return ""
	}
	return fmt.Sprintf("the guest ended unexpectedly (%.40q)", status.ExitType)
}

// finish ends what served the guest, and says that it is gone. cause is empty
// where it ended in its own way.
func (v *VM) finish(console words, cause string) {
	v.mu.Lock()
	open := v.open
	v.open = nil
	v.mu.Unlock()
	for c := range open {
		switch c := c.(type) {
		case *stream:
			c.Conn.Close()
		case *listener:
			c.Listener.Close()
		}
	}
	v.console.Close()
	panicked := console.end()

	v.mu.Lock()
	defer v.mu.Unlock()
	v.running = false
	switch {
	case v.killed:
	case panicked != "":
		v.reason = &hypervisor.GoneError{Cause: "the guest ended itself", Detail: panicked}
	case cause != "":
		v.reason = &hypervisor.GoneError{Cause: cause}
	}
	close(v.gone)
}

// Dial implements hypervisor.VM.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	v.mu.Lock()
	gone, running := v.open == nil, v.running
	v.mu.Unlock()
	switch {
	case gone:
		return nil, hypervisor.ErrGone
	case !running:
		return nil, hypervisor.ErrNotReady
	}
	c, err := v.driver.carry.Dial(ctx, v.address, port)
	switch {
	case err == nil:
		return v.keep(c)
	case v.ended():
		return nil, hypervisor.ErrGone
	case notYet(err):
		return nil, hypervisor.ErrNotReady
	}
	return nil, err
}

// Listen implements hypervisor.VM.
func (v *VM) Listen(port uint32) (net.Listener, error) {
	ln, err := v.driver.carry.Listen(v.address, port)
	if err != nil {
		if v.ended() {
			return nil, hypervisor.ErrGone
		}
		return nil, err
	}
	l := &listener{ln, v}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open == nil {
		ln.Close()
		return nil, hypervisor.ErrGone
	}
	v.open[l] = true
	return l, nil
}

// keep has a stream end with the guest.
func (v *VM) keep(c net.Conn) (net.Conn, error) {
	s := &stream{c, v}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.open == nil:
		c.Close()
		return nil, hypervisor.ErrGone
	case len(v.open) >= maxStreams:
		c.Close()
		return nil, fmt.Errorf("the guest has %d streams open, which is the most", maxStreams)
	}
	v.open[s] = true
	return s, nil
}

func (v *VM) forget(c io.Closer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.open, c)
}

// Mounts implements hypervisor.VM: the agent dials for every share.
func (v *VM) Mounts() []hypervisor.Mount {
	var ms []hypervisor.Mount
	for _, s := range v.cfg.Shares {
		ms = append(ms, hypervisor.Mount{Tag: s.Tag, Type: "fuse", GuestPath: s.GuestPath, ReadOnly: s.ReadOnly, Overlay: s.Overlay, Layer: s.Layer})
	}
	return ms
}

// Pause implements hypervisor.VM.
func (v *VM) Pause(ctx context.Context) error {
	return v.command(ctx, "pause the guest", hcsPauseComputeSystem)
}

// Resume implements hypervisor.VM.
func (v *VM) Resume(ctx context.Context) error {
	return v.command(ctx, "resume the guest", hcsResumeComputeSystem)
}

func (v *VM) command(ctx context.Context, op string, p *windows.LazyProc) error {
	v.mu.Lock()
	running := v.running
	v.mu.Unlock()
	if !running {
		return hypervisor.ErrGone
	}
	if err := v.system.do(ctx, p, commandLimit); err != nil {
		if v.ended() {
			return hypervisor.ErrGone
		}
		return failed(op, err)
	}
	return nil
}

func (v *VM) ended() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.open == nil
}

// Kill implements hypervisor.VM.
func (v *VM) Kill() error {
	v.mu.Lock()
	v.killed = true
	gone := v.open == nil || v.system == nil
	v.mu.Unlock()
	if gone {
		return nil
	}
	if err := v.terminate(); err != nil {
		return failed("end the guest", err)
	}
	return nil
}

// terminate ends the system, whatever it does. That it has ended is no error.
func (v *VM) terminate() error {
	err := v.system.do(context.Background(), hcsTerminateComputeSystem, commandLimit)
	var f *Failure
	if errors.As(err, &f) && (f.Result.known() == alreadyStopped || f.Result.known() == notFound) {
		return nil
	}
	return err
}

// Wait implements hypervisor.VM. A guest that is never started is waited for
// until Close.
func (v *VM) Wait() error {
	<-v.gone
	return v.reason
}

// Close implements hypervisor.VM.
func (v *VM) Close() error {
	v.mu.Lock()
	first := !v.closed
	v.closed = true
	v.mu.Unlock()
	errs := []error{v.Kill()}
	v.mu.Lock()
	started := v.started
	v.mu.Unlock()
	if !first {
		<-v.gone
		return nil
	}
	switch {
	case started:
		t := time.NewTimer(killLimit)
		defer t.Stop()
		select {
		case <-v.gone:
		case <-t.C:
			return errors.Join(append(errs, &hypervisor.Error{
				Op: "end the guest", Err: fmt.Errorf("compute system %s is not gone after %v", v.id, killLimit), Cure: "as administrator: `sc stop vmcompute`",
			})...)
		}
	case v.console != nil:
		v.console.Close()
		v.finish(v.drain(), "")
	default: // create came to nothing
		close(v.gone)
	}
	if v.system != nil {
		v.system.close()
	}
	return errors.Join(append(errs, v.remove()...)...)
}

// remove takes back and removes what create made.
func (v *VM) remove() (errs []error) {
	for _, f := range v.granted {
		// The shared kernel would collect an entry for each guest that there ever was.
		if err := access(hcsRevokeVMAccess, v.id, f); err != nil {
			errs = append(errs, err)
		}
	}
	for _, f := range slices.Backward(v.made) {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errs
}
