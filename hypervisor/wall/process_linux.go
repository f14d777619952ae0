package wall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/carrel-vm/carrel/hypervisor"
)

// specMax bounds a spec, in bytes.
const specMax = 1 << 20

// StartTimeout is how long the program may take to make its sandbox.
const StartTimeout = 15 * time.Second

// Hooks are what one driver's wall does its own way.
type Hooks struct {
	// Start makes the guest: it sets Child, as soon as that runs, and before
	// it returns Pidfds, Command and Notes. What it leaves when it fails is
	// ended by the caller.
	Start func(*Process) error
	// Cause says how the guest ended, or "" if that was in order.
	Cause func(*Process) string
	// Pause and Resume are for hosts without a freezer; nil: each process is
	// signalled. They run on the thread that Start ran on.
	Pause, Resume func(*Process) error
}

// Process is the wall: the process between a keeper and a sandbox.
type Process struct {
	Spec Spec
	// Boot and Calls are for the agent; Start closes them.
	Boot, Calls *os.File
	// Notes say what holds the guest and what does not, Command is the
	// program's own.
	Notes, Command []string
	// Groups are the guest's control groups.
	Groups Groups
	// Child is the program, once it runs: see Launch.
	Child *exec.Cmd
	// Ended is closed when Child has been waited for.
	Ended chan struct{}
	// Pidfds are the processes whose end is the guest's.
	Pidfds []int
	// Steps are the parts of the start, as Step adds them.
	Steps []Step

	hooks   Hooks
	control *net.UnixConn
	mu      sync.Mutex    // held over use of Groups once the keeper is obeyed
	gone    chan struct{} // closed when all of the guest is gone
	thread  chan func()   // for the thread that Start ran on
}

// Step adds a part of the start that ends now. Start's own goroutine calls it.
func (w *Process) Step(name string, begin time.Time) {
	w.Steps = append(w.Steps, Step{name, begin.UnixNano(), time.Now().UnixNano()})
}

// Main is the whole of the hidden sub-command that Options.Shim names. It
// returns when the guest is gone; the error says why it could not be started.
func Main(hooks Hooks) error {
	// The private mount namespace, and the signal by which the program ends
	// with us, belong to this thread.
	runtime.LockOSThread()
	w, err := newProcess(hooks)
	if err != nil {
		return fmt.Errorf("wall: %w (carreld wall is started by a keeper)", err)
	}
	w.Step("wall process begins", began)
	if err := hooks.Start(w); err != nil {
		if w.Child != nil {
			w.Child.Process.Kill()
			<-w.Ended
		}
		w.Groups.Remove()
		word := Word{Op: "start the guest", Err: err.Error()}
		var he *hypervisor.Error
		if errors.As(err, &he) {
			word.Op, word.Err, word.Cure = he.Op, he.Err.Error(), he.Cure
		}
		w.say(word)
		return err
	}
	w.say(Word{Started: true, Notes: w.Notes, Command: w.Command, Steps: w.Steps}, w.Pidfds...)
	go func() {
		for _, fd := range w.Pidfds {
			AwaitPidfd(fd)
		}
		close(w.gone)
	}()
	go w.obey()
	for ended := false; !ended; {
		select {
		case f := <-w.thread:
			f()
		case <-w.gone:
			ended = true
		}
	}
	// Without its children the program ends by itself, unless somebody
	// stopped it.
	select {
	case <-w.Ended:
	case <-time.After(time.Second):
		w.Child.Process.Kill()
		<-w.Ended
	}
	w.mu.Lock()
	cause := hooks.Cause(w)
	w.Groups.Remove()
	w.mu.Unlock()
	w.say(Word{Gone: true, Cause: cause})
	return nil
}

// began is close to this process's first instruction.
var began = time.Now()

func newProcess(hooks Hooks) (*Process, error) {
	w := &Process{
		Boot: os.NewFile(wallBootFD, "boot"), Calls: os.NewFile(wallCallsFD, "calls"),
		Ended: make(chan struct{}), gone: make(chan struct{}), thread: make(chan func()), hooks: hooks,
	}
	for fd := wallSpecFD; fd <= wallCallsFD; fd++ {
		unix.CloseOnExec(fd)
	}
	f := os.NewFile(wallSpecFD, "spec")
	b, err := io.ReadAll(io.LimitReader(f, specMax+1))
	if err != nil {
		return nil, fmt.Errorf("read what to start: %w", err)
	}
	f.Close()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&w.Spec); err != nil || len(b) > specMax {
		return nil, fmt.Errorf("read what to start: %d bytes: %v", len(b), err)
	}
	c := os.NewFile(wallControlFD, "control")
	defer c.Close()
	conn, err := net.FileConn(c)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	var ok bool
	if w.control, ok = conn.(*net.UnixConn); !ok {
		return nil, fmt.Errorf("control: a %T", conn)
	}
	return w, nil
}

// say tells the keeper, with files. A keeper that is gone hears nothing.
func (w *Process) say(word Word, fds ...int) {
	b, err := json.Marshal(word)
	if err != nil {
		panic(err) // strings and bools only
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	w.control.SetWriteDeadline(time.Now().Add(5 * time.Second))
	w.control.WriteMsgUnix(b, rights, nil)
}

// Launch starts cmd as Child. first, if given, is called before anybody waits
// for it.
func (w *Process) Launch(cmd *exec.Cmd, first func() error) error {
	if err := halveShared(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.Child = cmd
	if first != nil {
		defer w.reap()
		return first()
	}
	w.reap()
	return nil
}

func (w *Process) reap() {
	cmd := w.Child
	go func() {
		cmd.Wait() // its error is told by the state
		close(w.Ended)
	}()
}

// Limit makes the guest's groups and puts Child into them.
func (w *Process) Limit(owner uint32) (err error) {
	if w.Groups, err = NewGroups(&w.Spec, owner); err != nil {
		return err
	}
	if err := w.Groups.Add(w.Child.Process.Pid, &w.Spec); err != nil {
		return err
	}
	w.Groups.note, err = noCores(w.Child.Process.Pid)
	return err
}

// AwaitPidfd returns when the process has ended. That of a namespace's first
// process comes after that of all others in it (kernel/pid_namespace.c,
// zap_pid_ns_processes).
func AwaitPidfd(fd int) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && err != unix.EINTR {
			return
		}
	}
}

// obey does what the keeper asks until it goes away.
func (w *Process) obey() {
	var b [16]byte
	for {
		n, err := w.control.Read(b[:])
		if err != nil || n != 1 {
			w.kill()
			return
		}
		switch b[0] {
		case commandPause:
			w.answer("pause the guest", w.pause())
		case commandResume:
			w.answer("resume the guest", w.resume())
		default:
			w.kill()
			return
		}
	}
}

// onThread runs a hook on the thread that Start ran on.
func (w *Process) onThread(hook func(*Process) error) error {
	done := make(chan error, 1)
	select {
	case w.thread <- func() { done <- hook(w) }:
		return <-done
	case <-w.gone:
		return errors.New("the guest has ended")
	}
}

func (w *Process) answer(op string, err error) {
	word := Word{Done: true}
	if err != nil {
		word.Op, word.Err = op, err.Error()
	}
	w.say(word)
}

// kill ends the guest's processes, and the kernel all others with them.
func (w *Process) kill() {
	for _, fd := range w.Pidfds {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Groups.Thaw()
}

// DropCapabilities leaves all threads of this process those that are named.
func DropCapabilities(keep ...uint) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	var mask [2]uint32
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
	}
	for i := range data {
		data[i].Permitted &= mask[i]
		data[i].Effective &= mask[i]
		data[i].Inheritable = 0
	}
	if _, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return fmt.Errorf("capabilities: %w", errno)
	}
	return nil
}
