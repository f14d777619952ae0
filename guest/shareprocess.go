package guest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/carrel-vm/carrel/guest/share/control"
)

// shareReady bounds how long a share process may take to serve.
const shareReady = 60 * time.Second

// ShareSpec is what a share process serves.
type ShareSpec = control.Spec

// ShareStart says how a share process is started.
type ShareStart struct {
	// Command is its command line: {"/usr/bin/carreld", "share"}.
	Command []string
	// Log gets what it prints; nil: what this process prints to.
	Log *os.File
	// Outlive: it goes on when this process ends, as it does for a daemon, which
	// hands it to a keeper. Otherwise it ends with this process, whatever the way.
	Outlive bool
}

// StartShare starts the process of one share and returns its control socket
// when it is ready. It makes the folder of its store. The process ends when nobody holds the other end of that any
// more.
func StartShare(ctx context.Context, spec ShareSpec, o ShareStart) (_ *os.File, err error) {
	if len(o.Command) == 0 {
		return nil, errors.New("there is no command that serves shares")
	}
	if spec.Store != "" {
		if err := os.MkdirAll(spec.Store, 0o700); err != nil {
			return nil, err
		}
	}
	ours, theirs, err := control.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	defer func() {
		if err != nil {
			ours.Close()
		}
	}()
	cmd := exec.Command(o.Command[0], o.Command[1:]...)
	cmd.Env, cmd.Dir, cmd.Stderr = []string{}, "/", os.Stderr
	if o.Log != nil {
		cmd.Stderr = o.Log
	}
	cmd.ExtraFiles = []*os.File{theirs}
	shareAttributes(cmd, o.Outlive)
	started := make(chan error, 1)
	go func() {
		// The signal at a parent's death is sent when the thread that started
		// the process ends (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	theirs.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, shareReady, errors.New("its server was not ready in time"))
	defer cancel()
	dup, err := duplicate(ours)
	if err != nil {
		return nil, err
	}
	c, err := control.New(dup)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.Tell(ctx, spec); err != nil {
		cmd.Process.Kill()
		return nil, err
	}
	return ours, nil
}
