package client

import (
	"fmt"
	"strconv"

	"github.com/carrel-vm/carrel/guest/api"
)

// Signal is a signal by Linux's number, whatever the host's own numbers are.
type Signal int32

// The signals that a caller forwards, by Linux's numbers (signal(7)).
const (
	SIGHUP  Signal = 1
	SIGINT  Signal = 2
	SIGQUIT Signal = 3
	SIGKILL Signal = 9
	SIGPIPE Signal = 13
	SIGTERM Signal = 15
)

var signalNames = [...]string{
	1: "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
	"SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP",
	"SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
}

func (s Signal) String() string {
	if s > 0 && int(s) < len(signalNames) {
		return signalNames[s]
	}
	return "signal " + strconv.Itoa(int(s))
}

// ExitError says that a task ended otherwise than with status 0.
type ExitError struct {
	// Task is the task as it ended.
	Task *api.Task
	// Status is what a shell would show: the task's own status, 128+n for a
	// signal, 126 or 127 when it could not be started, 124 after its timeout,
	// 125 when it was interrupted.
	Status int
	// Signal ended the task, or is 0.
	Signal Signal
	// OOM: the guest's kernel killed it because its memory was used up.
	OOM bool
	// TimedOut: it ran longer than it was allowed to.
	TimedOut bool
	// Interrupted: it did not end by itself; its guest or keeper went away.
	Interrupted bool
	// Cause says why it was interrupted or could not be started.
	Cause string
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("exit status %d", e.Status)
	switch {
	case e.Interrupted:
		s = "interrupted"
	case e.TimedOut:
		s = "ended after its timeout"
	case e.OOM:
		s = "killed: out of memory"
	case e.Signal != 0:
		s = e.Signal.String()
	}
	if e.Cause != "" {
		s += ": " + e.Cause
	}
	return s
}

// ending turns a task that is over into what Wait returns.
func ending(t *api.Task) error {
	e := t.GetEnding()
	switch t.GetState() {
	case api.TaskState_TASK_STATE_EXITED:
		if e == nil {
			return fmt.Errorf("%w: it is said to be over, but not how", ErrTruncated)
		}
		if e.Status == 0 && e.Signal == 0 && !e.TimedOut {
			return nil
		}
	case api.TaskState_TASK_STATE_INTERRUPTED:
	default:
		return fmt.Errorf("%w: it is said to be over, but its state is %v", ErrTruncated, t.GetState())
	}
	x := &ExitError{
		Task: t, Status: int(e.GetStatus()), Signal: Signal(e.GetSignal()), OOM: e.GetOom(), TimedOut: e.GetTimedOut(), Cause: e.GetCause(),
		Interrupted: t.GetState() == api.TaskState_TASK_STATE_INTERRUPTED,
	}
	// A failure must not look like a success, nor like a status that no
	// caller can pass on.
	if x.Status <= 0 || x.Status > 255 || x.Interrupted {
		if x.Status != 0 && !x.Interrupted && x.Cause == "" {
			x.Cause = fmt.Sprintf("the impossible status %d was said", x.Status)
		}
		x.Status = 125
	}
	return x
}
