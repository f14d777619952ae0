//go:build unix

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/stage"
	"github.com/carrel-vm/carrel/guest/wire"
)

// start checks e and starts its stage. The status file says how the stage
// fared; the caller reads and closes it.
func (a *Agent) start(ctx context.Context, e *wire.Exec) (_ *streams, _ *task, status *os.File, err error) {
	if err := checkExec(e); err != nil {
		return nil, nil, nil, err
	}
	if l := e.Limits; a.o.Limitless && (l.GetMemoryBytes() > 0 || l.GetPids() > 0 || l.GetCpuMillis() > 0) {
		if a.o.beside != nil {
			return nil, nil, nil, errors.New("behind this wall nothing limits a task's memory, processes or processor time (leave the limit out)")
		}
		return nil, nil, nil, errors.New("no control group is this guest's to divide, so one task cannot be limited apart from others (limit the guest, or use --boundary vm)")
	}
	spec, uid, err := a.spec(e)
	if err != nil {
		return nil, nil, nil, err
	}
	t := &task{id: e.Id, told: make(chan struct{})}
	t.strays = a.strays(t)
	if t.cg, err = a.newGroup(e); err != nil {
		return nil, nil, nil, err
	}
	s, err := open(e, uid)
	if err == nil {
		t.proc, status, err = a.startStage(ctx, spec, s, t.cg)
		s.closeChild()
		if err != nil {
			s.close()
		}
	}
	if err != nil {
		if t.cg != nil {
			t.cg.remove()
		}
		return nil, nil, nil, err
	}
	a.mu.Lock()
	a.tasks[t] = struct{}{}
	ending := a.ending
	a.mu.Unlock()
	if ending {
		t.kill()
	}
	return s, t, status, nil
}

// spec turns the request into what the stage does. uid is who the streams are
// given to, or -1.
func (a *Agent) spec(e *wire.Exec) (_ *stage.Spec, uid int, err error) {
	acct, change, err := a.account(e.User)
	if err != nil {
		return nil, -1, err
	}
	a.settling.Wait()
	if a.settleErr != nil {
		return nil, -1, fmt.Errorf("the guest's settings are not complete: %w", a.settleErr)
	}
	a.mu.Lock()
	env := slices.Concat(a.env, a.claim.GetEnv()) // what came later wins
	a.mu.Unlock()
	if a.o.beside != nil {
		env = slices.Concat(env, a.o.beside.taskEnv(e.Id))
	}
	s := &stage.Spec{
		Argv:        e.Argv,
		Env:         append(environment(env, e.Env, acct, e.Tty), marker+"="+e.Id),
		Dir:         e.Cwd,
		DirOptional: e.Cwd == "",
		Rlimits:     rlimits(e.Limits),
		Parent:      os.Getpid(),
	}
	if e.Cwd == "" {
		s.Dir = acct.home
	}
	if a.o.beside != nil {
		s.Parent = 0      // the wall ends with the agent
		return s, -1, nil // and is what restricts its processes
	}
	if s.Parent == 1 {
		s.Parent = 0 // the kernel ends with its PID 1
	}
	if acct.uid != 0 {
		s.NoNewPrivs, s.Seccomp = true, stage.FilterUser
	} else {
		s.Seccomp = stage.FilterRoot
	}
	if !change {
		return s, -1, nil
	}
	s.User, s.UID, s.GID, s.Groups = true, acct.uid, acct.gid, acct.groups
	return s, int(acct.uid), nil
}

// account finds the user that a call names and says whether the process must
// change to it. An agent that is not root can run as itself only.
func (a *Agent) account(who string) (_ *account, change bool, err error) {
	if a.o.beside != nil {
		acct, err := a.o.beside.account(who)
		return acct, false, err
	}
	if who == "" {
		who = a.o.User
	}
	if who == "" {
		who = fmt.Sprint(os.Geteuid())
	}
	acct, err := lookUp(etc(), who)
	if err != nil {
		return nil, false, err
	}
	if !a.root && int(acct.uid) != os.Geteuid() {
		return nil, false, fmt.Errorf("the agent is not root and cannot run anything as %.64q", who)
	}
	return acct, a.root, nil
}

// rlimits are the task's resource limits.
func rlimits(l *wire.Limits) []stage.Rlimit {
	// Without a limit: what systemd gives a service. A large soft limit makes
	// old programs that close every file slow.
	r := []stage.Rlimit{{Resource: unix.RLIMIT_CORE}}
	if n := l.GetOpenFiles(); n > 0 {
		r = append(r, stage.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: n, Hard: n})
	} else if os.Getpid() == 1 {
		// A process sandbox cannot have more than its driver had.
		own := unix.Rlimit{Max: 512 << 10}
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &own)
		hard := min(own.Max, 512<<10)
		r = append(r, stage.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: min(1024, hard), Hard: hard})
	}
	if n := l.GetFileBytes(); n > 0 {
		r = append(r, stage.Rlimit{Resource: unix.RLIMIT_FSIZE, Soft: n, Hard: n})
	}
	return r
}

// startStage starts a copy of the agent that becomes what spec says.
func (a *Agent) startStage(ctx context.Context, spec *stage.Spec, s *streams, cg group) (*child, *os.File, error) {
	b, err := spec.Encode()
	if err != nil {
		return nil, nil, err
	}
	described, err := a.describe(b)
	if err != nil {
		return nil, nil, fmt.Errorf("describe the task: %w", err)
	}
	defer described.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	sys := &syscall.SysProcAttr{Setsid: true, Setctty: s.tty}
	if cg != nil {
		cg.enter(sys)
	}
	files := []uintptr{s.child[0].Fd(), s.child[1].Fd(), s.child[2].Fd(), described.Fd(), w.Fd()}
	p, err := a.children.start(ctx, self, []string{stage.Name}, &syscall.ProcAttr{
		// One processor and no collection: the stage lives for milliseconds.
		Dir: "/", Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Files: files, Sys: sys,
	})
	if err != nil {
		_ = r.Close()
		if errors.Is(err, syscall.EAGAIN) {
			return nil, nil, errors.New("the guest has no room for another process (too many run in it; end some, or stop the guest)")
		}
		return nil, nil, fmt.Errorf("start a process in the guest: %w", err)
	}
	return p, r, nil
}

// readStatus waits until the stage has become the command, and returns nil, or
// what kept it from that.
func readStatus(status *os.File) *wire.Failed {
	defer status.Close()
	b, _ := io.ReadAll(io.LimitReader(status, wire.MaxText+1))
	if len(b) == 0 {
		return nil
	}
	return &wire.Failed{Code: int32(b[0]), Message: text(string(b[1:]), wire.MaxText)}
}
