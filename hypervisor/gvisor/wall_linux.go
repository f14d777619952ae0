package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// Places of runsc's own files, in a tmpfs that only the wall and its children
// see and that ends with them.
const (
	bundleDir = wall.StageDir + "/bundle"
	stateDir  = wall.StageDir + "/state"
	logFile   = wall.StageDir + "/runsc.log"
)

// sandboxID is what runsc calls a guest, by the guest's folder. Its state is in a
// folder of its own, but the sentry listens on an abstract socket of that name
// in the network namespace that all guests' runsc share.
func sandboxID(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "carrel-" + hex.EncodeToString(sum[:8])
}

// WallMain is the whole of the hidden sub-command that Options.Shim names. It
// takes no arguments and returns when the guest is gone; the error says why it
// could not be started.
func WallMain(args []string) error {
	if len(args) != 0 {
		return fmt.Errorf("wall gvisor: %d arguments; it takes none", len(args))
	}
	return wall.Main(wall.Hooks{
		Start: build, Cause: cause,
		Pause:  func(w *wall.Process) error { return control(w, "pause") },
		Resume: func(w *wall.Process) error { return control(w, "resume") },
	})
}

// build makes the guest:
//
//  1. what it is made from is opened and mounted where runsc finds it, in a
//     mount namespace that ends with this process
//  2. no process from here on can give a file another user's rights
//  3. runsc starts, stopped, and is put into its groups before it goes on
//  4. it says who the sentry is; the gofer is the other child
func build(w *wall.Process) error {
	s, err := wall.OpenFiles(&w.Spec)
	if err != nil {
		return err
	}
	defer s.Close()
	plan, err := stage(w, s)
	if err != nil {
		return &hypervisor.Error{Op: "prepare the guest's files", Err: err}
	}
	if err := writeBundle(plan); err != nil {
		return err
	}
	if err := wall.NoSpecialBits(); err != nil {
		return &hypervisor.Error{Op: "refuse set-uid files", Err: err, Cure: "the kernel needs CONFIG_SECCOMP_FILTER"}
	}
	pidR, pidW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pidR.Close()
	err = launch(w, s.Base, pidW)
	pidW.Close()
	if err != nil {
		return err
	}
	sentry, err := sentryPID(w, pidR)
	if err != nil {
		return err
	}
	if err := hold(w, sentry); err != nil {
		return err
	}
	w.Boot.Close()
	w.Calls.Close()
	w.Notes = slices.Concat(wallNotes(w.Spec.Platform, w.Spec.Ranged), w.Groups.Notes(), s.Notes)
	w.Command = w.Child.Args
	return nil
}

// stage mounts what the guest sees.
func stage(w *wall.Process, s *wall.Files) (Plan, error) {
	p := Plan{Name: w.Spec.Name, MemoryMiB: w.Spec.MemoryMiB}
	pid := 0
	if w.Spec.Ranged {
		p.Base, p.Users = s.Base, wall.IDRange
		h, err := wall.Holder(s.Base)
		if err != nil {
			return p, fmt.Errorf("make the guest's users: %w", err)
		}
		defer h.Wait()
		defer h.Process.Kill()
		pid = h.Process.Pid
	}
	// The gofer makes the image's mount read-only once more, in a user namespace
	// where what else was set would have to be said again, which it does not.
	s.RootMakes = true
	at, err := s.Stage(pid, 0)
	if err != nil {
		return p, err
	}
	p.Agent, p.Root = at[s.Agent], at[s.Tree]
	if s.Image != nil {
		p.Root = at[s.Image]
	}
	for i, f := range s.Shares {
		source := at[f]
		if f == nil {
			if source, err = w.MountServed(i); err != nil {
				return p, err
			}
		}
		p.Shares = append(p.Shares, Bind{source, w.Spec.Shares[i].Writable})
	}
	return p, mountPoints(p)
}

// mountPoints makes the places where the gofer mounts the agent and the shares:
// the image is read-only, also for it.
func mountPoints(p Plan) error {
	if err := unix.Mount("run", p.Root+"/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount a tmpfs over /run of the image: %w", err)
	}
	for i := range p.Shares {
		if err := os.MkdirAll(p.Root+insideShares+"/"+strconv.Itoa(i), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(p.Root+insideAgent), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p.Root+insideAgent, nil, 0o644)
}

func writeBundle(p Plan) error {
	c, err := Config(p)
	if err != nil {
		return err
	}
	for _, d := range []string{bundleDir, stateDir} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(bundleDir, "config.json"), c, 0o600)
}

// launch starts runsc and puts it into its groups before its first instruction.
func launch(w *wall.Process, owner uint32, pid *os.File) error {
	args := append(Flags(w.Spec.Platform, stateDir, logFile, !w.Spec.Ranged), "run", "--bundle", bundleDir, "--pid-file", "/proc/self/fd/3", sandboxID(w.Spec.Dir))
	cmd := exec.Command(w.Spec.Program, args...)
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = w.Calls, os.Stdout, w.Boot
	cmd.ExtraFiles = []*os.File{pid}
	// The kernel stops what is traced when it becomes another program. runsc
	// ends with us, and its children with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Ptrace: true}
	err := w.Launch(cmd, func() error {
		var st unix.WaitStatus
		if _, err := unix.Wait4(cmd.Process.Pid, &st, 0, nil); err != nil || !st.Stopped() {
			return fmt.Errorf("it did not stop: %v, status %#x", err, st)
		}
		if err := w.Limit(owner); err != nil {
			return &hypervisor.Error{Op: "limit the guest", Err: err}
		}
		return unix.PtraceDetach(cmd.Process.Pid)
	})
	var he *hypervisor.Error
	if err != nil && !errors.As(err, &he) {
		err = &hypervisor.Error{Op: "start gVisor", Err: err, Cure: installCure}
	}
	return err
}

// sentryPID reads what runsc writes when the sandbox stands.
func sentryPID(w *wall.Process, from *os.File) (int, error) {
	from.SetReadDeadline(time.Now().Add(wall.StartTimeout))
	go func() { // ends with runsc, which ends with us
		<-w.Ended
		from.SetReadDeadline(time.Now())
	}()
	b := make([]byte, 32)
	n, err := from.Read(b)
	if err == nil {
		return strconv.Atoi(string(b[:n]))
	}
	select {
	case <-w.Ended:
		said, _ := os.ReadFile(logFile)
		return 0, &hypervisor.Error{
			Op: "start gVisor", Err: fmt.Errorf("runsc: %v: %s", w.Child.ProcessState, lastWords(said)),
			Cure: "carrel doctor says what works here",
		}
	case <-time.After(time.Second):
		return 0, fmt.Errorf("runsc did not say who the sentry is: %w", err)
	}
}

// hold takes hold of runsc, the sentry and the gofer.
func hold(w *wall.Process, sentry int) error {
	runsc := w.Child.Process.Pid
	pids := wall.Children(runsc)
	if !slices.Contains(pids, sentry) {
		return errors.New("the sentry is not runsc's child (a newer runsc?)")
	}
	for _, pid := range append([]int{runsc}, pids...) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("take hold of the guest: %w", err)
		}
		w.Pidfds = append(w.Pidfds, fd)
	}
	// A pid that is still runsc's child was never another's.
	after := wall.Children(runsc)
	for _, pid := range pids {
		if !slices.Contains(after, pid) {
			return errors.New("the guest ended before it began")
		}
	}
	return nil
}

// controlTimeout bounds a command of runsc's.
const controlTimeout = 5 * time.Second

// control asks runsc to pause or resume the guest.
func control(w *wall.Process, verb string) error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.Spec.Program, append(Flags(w.Spec.Platform, stateDir, logFile, !w.Spec.Ranged), verb, sandboxID(w.Spec.Dir))...)
	cmd.Env, cmd.Dir = []string{}, "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("runsc %s: %w: %s", verb, err, lastWords(out))
	}
	return nil
}

// cause says how the guest ended, unless in order.
func cause(w *wall.Process) string {
	ws, ok := w.Child.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok || ws.Exited() && ws.ExitStatus() == 0:
		return ""
	case w.Groups.OOM():
		return "gVisor was killed: the guest was out of memory"
	case ws.Signaled():
		return fmt.Sprintf("runsc was killed by signal %d (%v)", ws.Signal(), ws.Signal())
	case ws.ExitStatus() > 128: // as shells say it
		return fmt.Sprintf("the guest's agent was killed by signal %d", ws.ExitStatus()-128)
	}
	return fmt.Sprintf("the guest's agent ended with status %d", ws.ExitStatus())
}
