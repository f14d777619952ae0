package bubblewrap

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
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/carrel-vm/carrel/hypervisor"
)

// specMax bounds a spec, in bytes.
const specMax = 1 << 20

// wall is the process between a keeper and bwrap.
type wall struct {
	spec        wallSpec
	control     *net.UnixConn
	boot, calls *os.File
	notes       []string

	mu     sync.Mutex // held over use of groups once the keeper is obeyed
	groups groups
	bwrap  *exec.Cmd
	status *os.File
	ended  chan struct{} // closed when bwrap has been waited for
	pidfd  int           // the guest's first process
	gone   chan struct{} // closed when that, and so all of the guest, is gone
}

// WallMain is the whole of the hidden sub-command that Options.Shim names. It
// takes no arguments and returns when the guest is gone; the error says why it
// could not be started.
func WallMain(args []string) error {
	if len(args) != 0 {
		return fmt.Errorf("wall: %d arguments; it takes none", len(args))
	}
	// The private mount namespace, and the signal by which bwrap ends with us,
	// belong to this thread.
	runtime.LockOSThread()
	w, err := newWall()
	if err != nil {
		return fmt.Errorf("wall: %w (carreld wall is started by a keeper)", err)
	}
	err = w.start()
	if err != nil {
		if w.bwrap != nil {
			w.bwrap.Process.Kill()
			<-w.ended
		}
		w.groups.remove()
		word := wallWord{Op: "start the guest", Err: err.Error()}
		var he *hypervisor.Error
		if errors.As(err, &he) {
			word.Op, word.Err, word.Cure = he.Op, he.Err.Error(), he.Cure
		}
		w.say(word)
		return err
	}
	go w.obey()
	<-w.gone
	// Without its child, bwrap ends by itself, unless somebody stopped it.
	select {
	case <-w.ended:
	case <-time.After(time.Second):
		w.bwrap.Process.Kill()
		<-w.ended
	}
	w.mu.Lock()
	cause := w.cause()
	w.groups.remove()
	w.mu.Unlock()
	w.say(wallWord{Gone: true, Cause: cause})
	return nil
}

func newWall() (*wall, error) {
	w := &wall{
		boot: os.NewFile(wallBootFD, "boot"), calls: os.NewFile(wallCallsFD, "calls"),
		ended: make(chan struct{}), gone: make(chan struct{}), pidfd: -1,
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
	if err := d.Decode(&w.spec); err != nil || len(b) > specMax {
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
func (w *wall) say(word wallWord, fds ...int) {
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

// start makes the guest:
//
//  1. what bwrap is to mount is opened, and, as root, mounted where bwrap
//     finds it, in a mount namespace that ends with this thread
//  2. bwrap starts and waits for its arguments; it is put into its groups
//  3. owners are mapped, which takes its user namespace
//  4. it gets its arguments and says who its child is
//  5. this process keeps what it takes to end the guest and to remove its groups
func (w *wall) start() error {
	s, err := openSources(&w.spec)
	if err != nil {
		return err
	}
	defer s.close()
	filters, err := filters()
	if err != nil {
		return &hypervisor.Error{Op: "make the filter of system calls", Err: err}
	}
	defer func() {
		for _, f := range filters {
			f.Close()
		}
	}()
	argsR, argsW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer argsW.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return err
	}
	w.status = statusR // bwrap also writes to it at its end
	files := append([]*os.File{w.boot, w.calls, argsR, statusW}, filters...)
	files = append(files, s.inherited(3+len(files))...)
	err = w.launch(files)
	argsR.Close()
	statusW.Close()
	if err != nil {
		return namespaceError(err)
	}
	// Moving a process takes the kernel a while, which the mounts can use.
	limited := make(chan error, 1)
	go func() { limited <- w.limit(s.base) }()
	plan, err := s.stage(w.bwrap.Process.Pid)
	if lerr := <-limited; lerr != nil {
		return &hypervisor.Error{Op: "limit the guest", Err: lerr}
	}
	if err != nil {
		return err
	}
	w.notes = append(w.notes, w.groups.notes()...)
	w.notes = append(w.notes, s.notes...)
	plan.Filters = len(filters)
	options, command := Args(plan)
	if _, err := argsW.WriteString(strings.Join(options, "\x00") + "\x00"); err != nil {
		return fmt.Errorf("tell bwrap what to do: %w", err)
	}
	argsW.Close()
	statusR.SetReadDeadline(time.Now().Add(startTimeout))
	if err := w.findChild(statusR); err != nil {
		return err
	}
	w.boot.Close()
	w.calls.Close()
	if err := dropCapabilities(unix.CAP_KILL, unix.CAP_DAC_OVERRIDE); err != nil {
		return err
	}
	w.say(wallWord{Started: true, Notes: w.notes, Command: slices.Concat([]string{w.spec.Bwrap}, options, []string{"--"}, command)}, w.pidfd)
	return nil
}

// limit makes the guest's groups and puts bwrap into them.
func (w *wall) limit(owner uint32) (err error) {
	if w.groups, err = newGroups(&w.spec, owner); err != nil {
		return err
	}
	return w.groups.add(w.bwrap.Process.Pid, &w.spec)
}

// startTimeout is how long bwrap may take to make its child.
const startTimeout = 15 * time.Second

// launch starts bwrap, which then waits for its arguments.
func (w *wall) launch(files []*os.File) error {
	_, command := Args(w.spec.plan())
	// The command must be on the real command line (bwrap(1), --args).
	w.bwrap = exec.Command(w.spec.Bwrap, append([]string{"--args", strconv.Itoa(fdArgs), "--"}, command...)...)
	w.bwrap.Env, w.bwrap.Dir = []string{}, "/"
	w.bwrap.Stdout, w.bwrap.Stderr = os.Stdout, os.Stderr
	w.bwrap.ExtraFiles = files
	w.bwrap.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if asRoot() {
		mapRange(w.bwrap.SysProcAttr, int(baseID(w.spec.Dir)))
	}
	if err := w.bwrap.Start(); err != nil {
		w.bwrap = nil
		return err
	}
	go func() {
		w.bwrap.Wait() // its error is told by the state
		close(w.ended)
	}()
	return nil
}

// findChild reads the pid of bwrap's child and takes hold of it.
func (w *wall) findChild(status *os.File) error {
	var child struct {
		PID int `json:"child-pid"`
	}
	if err := json.NewDecoder(io.LimitReader(status, 64<<10)).Decode(&child); err != nil || child.PID <= 0 {
		select {
		case <-w.ended:
			return namespaceError(fmt.Errorf("bwrap: %v", w.bwrap.ProcessState))
		case <-time.After(time.Second):
		}
		return fmt.Errorf("bwrap did not say who its child is: %v", err)
	}
	fd, err := unix.PidfdOpen(child.PID, 0)
	if err != nil {
		return fmt.Errorf("take hold of the guest: %w", err)
	}
	// A pid that is still bwrap's child was never another's.
	if !isChild(w.bwrap.Process.Pid, child.PID) {
		unix.Close(fd)
		return errors.New("the guest ended before it began")
	}
	w.pidfd = fd
	go func() {
		awaitPidfd(fd)
		close(w.gone)
	}()
	return nil
}

func isChild(parent, pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	return err == nil && slices.Contains(strings.Fields(string(b)), strconv.Itoa(pid))
}

// awaitPidfd returns when the process has ended. That of a namespace's first
// process comes after that of all others in it (kernel/pid_namespace.c,
// zap_pid_ns_processes).
func awaitPidfd(fd int) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && err != unix.EINTR {
			return
		}
	}
}

// obey does what the keeper asks until it goes away.
func (w *wall) obey() {
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

func (w *wall) answer(op string, err error) {
	word := wallWord{Done: true}
	if err != nil {
		word.Op, word.Err = op, err.Error()
	}
	w.say(word)
}

// kill ends the guest's first process, and the kernel all others with it.
func (w *wall) kill() {
	unix.PidfdSendSignal(w.pidfd, unix.SIGKILL, nil, 0)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.groups.thaw()
}

// cause says how the guest ended, unless in order; needs mu.
func (w *wall) cause() string {
	ws, ok := w.bwrap.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok || ws.ExitStatus() == 0:
		return ""
	case ws.Signaled():
		return fmt.Sprintf("bwrap was killed by signal %d (%v)", ws.Signal(), ws.Signal())
	case w.groups.oom():
		return "the guest's agent was killed: the guest was out of memory"
	case ws.ExitStatus() > 128: // as shells say it
		return fmt.Sprintf("the guest's agent was killed by signal %d", ws.ExitStatus()-128)
	}
	return fmt.Sprintf("the guest's agent ended with status %d", ws.ExitStatus())
}

// dropCapabilities leaves all threads of this process those that are named.
func dropCapabilities(keep ...uint) error {
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
	if _, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(ptr(&hdr)), uintptr(ptr(&data[0])), 0); errno != 0 {
		return fmt.Errorf("capabilities: %w", errno)
	}
	return nil
}
