package guest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/share/control"
)

// shareReady bounds how long a share process may take to serve.
const shareReady = 60 * time.Second

// shareMemory bounds a share process on Windows, in bytes. Its tables are bounded
// by themselves, far below.
const shareMemory = 1 << 30

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
// when it is ready. It makes the folder of its store. The process ends when nobody
// has that socket any more.
func StartShare(ctx context.Context, spec ShareSpec, o ShareStart) (_ *control.Conn, err error) {
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
	c, err := control.New(ours)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	cmd := exec.Command(o.Command[0], o.Command[1:]...)
	cmd.Env, cmd.Dir, cmd.Stderr = []string{}, filepath.VolumeName(o.Command[0])+string(filepath.Separator), os.Stderr
	if o.Log != nil {
		cmd.Stderr = o.Log
	}
	shareAttributes(cmd, o.Outlive)
	started := make(chan error, 1)
	go func() {
		// The signal at a parent's death is sent when the thread that started
		// the process ends (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := inherit.Start(cmd, theirs)
		if err == nil {
			var done func()
			if done, err = inherit.Hold(cmd, inherit.Limits{Memory: shareMemory, Outlive: o.Outlive}); err == nil {
				started <- nil
				cmd.Wait()
				done()
				return
			}
			cmd.Process.Kill()
			cmd.Wait()
		}
		started <- err
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	theirs.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, shareReady, errors.New("its server was not ready in time"))
	defer cancel()
	if err := c.Tell(ctx, spec); err != nil {
		cmd.Process.Kill()
		return nil, err
	}
	return c, nil
}
