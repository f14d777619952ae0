//go:build unix

package agent

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/stage"
	"github.com/carrel-vm/carrel/guest/wire"
)

// marker is the variable that tells a process that it runs in a guest, and in
// which task. Without control groups it is also how the agent finds what a
// task left behind.
const marker = "CARREL_TASK"

// task is one running command.
type task struct {
	id   string
	proc *child
	// cg is nil where there are no control groups.
	cg group
	// strays kills what the task left behind, where cg is nil.
	strays func()
	// told is closed when the host was sent the last frame, or is gone.
	told chan struct{}

	mu sync.Mutex
	// over says that the id may be another task's by now.
	over bool
}

// group is a control group that is one task's alone.
type group interface {
	// enter has a process begin in it.
	enter(*syscall.SysProcAttr)
	// kill ends every process in it.
	kill()
	// waitEmpty returns when no process is left, or gives up.
	waitEmpty()
	// oom says whether the kernel killed a process for lack of memory.
	oom() bool
	// remove kills what is left and removes it.
	remove()
}

// kill ends all of the task.
func (t *task) kill() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	if t.cg != nil {
		t.cg.kill()
		return
	}
	_ = t.proc.signalGroup(unix.SIGKILL)
	t.strays()
}

// exec is the way of one command:
//
//  1. the request is checked, its user found
//  2. a control group and streams are made, the stage is started in them
//  3. the stage becomes the command, or says why not:  Failed
//  4. Started; then output, stdin, signals and sizes flow
//  5. the command ends: what it left running is killed, its output read out
//  6. Exit
//
// If the host goes away, or breaks the rules, everything is killed.
func (a *Agent) exec(ctx context.Context, conn net.Conn, e *wire.Exec) {
	out := &output{conn: conn}
	release, err := a.take()
	if err != nil {
		out.fail(stage.CodeFailed, err.Error())
		return
	}
	s, t, status, err := a.start(ctx, e)
	if err != nil {
		release()
		out.fail(stage.CodeFailed, err.Error())
		return
	}
	in := newStdin(s)
	var group sync.WaitGroup
	group.Go(func() {
		input(conn, t, s, in)
		t.kill() // the host is gone, or will not be understood
	})
	last := attend(out, s, t, in, status, &group)
	s.close()
	// The place is free before the host hears of the end.
	release()
	_ = out.send(last)
	close(t.told)
	_ = conn.Close()
	group.Wait()
	a.forget(t)
}

// attend carries a started task's streams and returns the call's last frame.
func attend(out *output, s *streams, t *task, in *stdin, status *os.File, group *sync.WaitGroup) *wire.Output {
	if f := readStatus(status); f != nil {
		<-t.proc.done
		return &wire.Output{Kind: &wire.Output_Failed{Failed: f}}
	}
	if out.send(&wire.Output{Kind: &wire.Output_Started{Started: &wire.Started{Pid: int32(t.proc.pid)}}}) != nil {
		t.kill()
	}
	if s.in != nil {
		group.Go(func() { in.pump(out) })
	}
	var d drain
	var pumps sync.WaitGroup
	for _, f := range []*os.File{s.out, s.err} {
		if f != nil {
			pumps.Go(func() {
				if out.pump(f, f == s.err, &d) != nil {
					t.kill()
				}
			})
		}
	}
	<-t.proc.done
	in.stop()
	t.kill()
	d.begin(s.out, s.err)
	pumps.Wait()
	exit := &wire.Exit{Code: int32(max(t.proc.status.ExitStatus(), 0))}
	if t.cg != nil {
		t.cg.waitEmpty()
		exit.Oom = t.cg.oom()
	}
	if t.proc.status.Signaled() {
		exit.Signal = int32(t.proc.status.Signal())
	}
	return &wire.Output{Kind: &wire.Output_Exit{Exit: exit}}
}

// forget removes a task that has ended.
func (a *Agent) forget(t *task) {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	if t.cg != nil {
		t.cg.remove()
	}
	a.mu.Lock()
	delete(a.tasks, t)
	a.mu.Unlock()
}

// input does what the host's frames say until they end.
func input(conn net.Conn, t *task, s *streams, in *stdin) {
	r := wire.NewReader(conn)
	for {
		var m wire.Input
		if r.Read(&m) != nil {
			return
		}
		switch k := m.Kind.(type) {
		case *wire.Input_Stdin:
			if in.add(k.Stdin) != nil {
				return
			}
		case *wire.Input_StdinClose:
			if in.w != nil {
				in.finish()
			}
		case *wire.Input_Signal:
			if n := k.Signal.GetNumber(); n >= 1 && n <= 64 {
				t.signal(syscall.Signal(n), s)
			}
		case *wire.Input_Resize:
			_ = s.resize(k.Resize.GetRows(), k.Resize.GetCols())
		default:
			return
		}
	}
}

// signal reaches the task's own process group, and with a terminal also the
// one in its foreground: a shell gives each of its jobs a group.
func (t *task) signal(sig syscall.Signal, s *streams) {
	_ = t.proc.signalGroup(sig)
	if !s.tty {
		return
	}
	raw, err := s.out.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if g, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil && g > 1 && g != t.proc.pid {
			_ = syscall.Kill(-g, sig)
		}
	})
}
