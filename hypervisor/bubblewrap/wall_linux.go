package bubblewrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// WallMain is the whole of the hidden sub-command that Options.Shim names. It
// takes no arguments and returns when the guest is gone; the error says why it
// could not be started.
func WallMain(args []string) error {
	if len(args) != 0 {
		return fmt.Errorf("wall: %d arguments; it takes none", len(args))
	}
	return wall.Main(wall.Hooks{Start: build, Cause: cause})
}

// build makes the guest:
//
//  1. what bwrap is to mount is opened, and, as root, mounted where bwrap
//     finds it, in a mount namespace that ends with this thread
//  2. bwrap starts and waits for its arguments; it is put into its groups
//  3. owners are mapped, which takes its user namespace
//  4. it gets its arguments and says who its child is
//  5. this process keeps what it takes to end the guest and to remove its groups
func build(w *wall.Process) error {
	begun := time.Now()
	s, err := wall.OpenFiles(&w.Spec)
	if err != nil {
		return err
	}
	defer s.Close()
	w.Step("wall's files opened", begun)
	begun = time.Now()
	filters, err := filters()
	if err != nil {
		return &hypervisor.Error{Op: "make the filter of system calls", Err: err}
	}
	w.Step("filters made", begun)
	begun = time.Now()
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
	statusR, statusW, err := os.Pipe() // bwrap also writes to it at its end
	if err != nil {
		return err
	}
	files := append([]*os.File{w.Boot, w.Calls, argsR, statusW}, filters...)
	own, fds := inherited(s, w.Spec.Ranged, 3+len(files))
	err = launch(w, append(files, own...))
	argsR.Close()
	statusW.Close()
	if err != nil {
		return namespaceError(err)
	}
	w.Step("bwrap started", begun)
	begun = time.Now()
	// Moving a process takes the kernel a while, which the mounts can use.
	limited := make(chan error, 1)
	go func() { limited <- w.Limit(s.Base) }()
	p, err := stage(w, s, fds)
	w.Step("wall's mounts staged", begun)
	if lerr := <-limited; lerr != nil {
		return &hypervisor.Error{Op: "limit the guest", Err: lerr}
	}
	if err != nil {
		return err
	}
	w.Step("groups made, bwrap limited", begun)
	begun = time.Now()
	w.Notes = slices.Concat(wallNotes(), w.Groups.Notes(), s.Notes)
	if slices.ContainsFunc(w.Spec.Shares, func(sh wall.Share) bool { return sh.By == wall.ByBind }) {
		w.Notes = append(w.Notes, "shares: programs of the host that listen on a socket or read a named pipe in a plain folder shared without a layer (:ro,plain, :rw,plain) can be reached by the guest")
	}
	p.Filters = len(filters)
	options, command := Args(p)
	if _, err := argsW.WriteString(strings.Join(options, "\x00") + "\x00"); err != nil {
		return fmt.Errorf("tell bwrap what to do: %w", err)
	}
	argsW.Close()
	statusR.SetReadDeadline(time.Now().Add(wall.StartTimeout))
	if err := findChild(w, statusR); err != nil {
		return err
	}
	w.Step("bwrap names its child", begun)
	w.Boot.Close()
	w.Calls.Close()
	w.Command = slices.Concat([]string{w.Spec.Program}, options, []string{"--"}, command)
	return wall.DropCapabilities(unix.CAP_KILL, unix.CAP_DAC_OVERRIDE)
}

// launch starts bwrap, which then waits for its arguments.
func launch(w *wall.Process, files []*os.File) error {
	_, command := Args(plan(&w.Spec))
	// The command must be on the real command line (bwrap(1), --args).
	cmd := exec.Command(w.Spec.Program, append([]string{"--args", strconv.Itoa(fdArgs), "--"}, command...)...)
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if w.Spec.Ranged {
		wall.MapRange(cmd.SysProcAttr, int(wall.BaseID(w.Spec.Dir)))
	}
	return w.Launch(cmd, nil)
}

// plan is what Args can know before anything is mounted.
func plan(s *wall.Spec) Plan {
	return Plan{Mapped: s.Ranged, HostRoot: s.Image == "" && s.Tree == "", MemoryMiB: s.MemoryMiB}
}

// inherited are the files that bwrap mounts by descriptor, the first of which
// will be number first there. As root it mounts what has been put in place.
func inherited(s *wall.Files, ranged bool, first int) (files []*os.File, fds map[*os.File]int) {
	fds = map[*os.File]int{}
	if ranged {
		return nil, fds
	}
	for _, f := range append([]*os.File{s.Agent, s.Tree, s.Changes}, s.Shares...) {
		if f != nil {
			fds[f] = first + len(files)
			files = append(files, f)
		}
	}
	return files, fds
}

// stage makes the mounts that take a right, and returns what bwrap is to do.
func stage(w *wall.Process, s *wall.Files, fds map[*os.File]int) (Plan, error) {
	p := plan(&w.Spec)
	place := func(f *os.File, dest string, writable bool) {
		p.Binds = append(p.Binds, Bind{Source: f.Name(), FD: fds[f], Dest: dest, Writable: writable})
	}
	if w.Spec.Ranged {
		st, err := s.Stage(w.Child.Process.Pid, wall.Quiet)
		if err != nil {
			return p, &hypervisor.Error{Op: "prepare the guest's files", Err: err}
		}
		place = func(f *os.File, dest string, writable bool) {
			p.Binds = append(p.Binds, Bind{Source: st[f], Dest: dest, Writable: writable})
		}
	}
	if w.Spec.Fuse {
		p.Fuse = wall.FuseDevice
		if w.Spec.Ranged {
			var err error
			if p.Fuse, err = s.OwnFuse(); err != nil && served(&w.Spec) {
				return p, err
			}
		}
	}
	place(s.Agent, insideAgent, false)
	switch {
	case s.Image != nil:
		place(s.Image, insideImage, false)
	case s.Tree != nil:
		place(s.Tree, insideImage, false)
	default:
		hostRoot(&p)
	}
	if s.Changes != nil {
		place(s.Changes, insideChanges, true)
	}
	for i, f := range s.Shares {
		if f == nil {
			continue // the agent dials for it
		}
		place(f, filepath.Join(insideShares, strconv.Itoa(i)), w.Spec.Shares[i].Writable)
	}
	return p, nil
}

// served says whether a share needs the share server.
func served(s *wall.Spec) bool {
	return slices.ContainsFunc(s.Shares, func(sh wall.Share) bool { return sh.By == wall.ByStream })
}

// findChild reads the pid of bwrap's child and takes hold of it.
func findChild(w *wall.Process, status *os.File) error {
	var child struct {
		PID int `json:"child-pid"`
	}
	if err := json.NewDecoder(io.LimitReader(status, 64<<10)).Decode(&child); err != nil || child.PID <= 0 {
		select {
		case <-w.Ended:
			return namespaceError(fmt.Errorf("bwrap: %v", w.Child.ProcessState))
		case <-time.After(time.Second):
		}
		return fmt.Errorf("bwrap did not say who its child is: %v", err)
	}
	fd, err := unix.PidfdOpen(child.PID, 0)
	if err != nil {
		return fmt.Errorf("take hold of the guest: %w", err)
	}
	// A pid that is still bwrap's child was never another's.
	if !slices.Contains(wall.Children(w.Child.Process.Pid), child.PID) {
		unix.Close(fd)
		return errors.New("the guest ended before it began")
	}
	w.Pidfds = []int{fd}
	return nil
}

// cause says how the guest ended, unless in order.
func cause(w *wall.Process) string {
	ws, ok := w.Child.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok || ws.ExitStatus() == 0:
		return ""
	case ws.Signaled():
		return fmt.Sprintf("bwrap was killed by signal %d (%v)", ws.Signal(), ws.Signal())
	case w.Groups.OOM():
		return "the guest's agent was killed: the guest was out of memory"
	case ws.ExitStatus() > 128: // as shells say it
		return fmt.Sprintf("the guest's agent was killed by signal %d", ws.ExitStatus()-128)
	}
	return fmt.Sprintf("the guest's agent ended with status %d", ws.ExitStatus())
}
