//go:build unix && !linux

package stage

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// closeOthers closes, when this becomes the task, every file that it shall not
// have.
func closeOthers() error {
	files, err := os.ReadDir("/dev/fd")
	if err != nil {
		return err
	}
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > StatusFD {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// restrict sets limits. What else holds a task here is its wall's affair, and
// was set up before the agent.
func restrict(s *Spec) error {
	if s.NoNewPrivs || s.Seccomp != FilterNone {
		return errors.New("this system has no filters of calls")
	}
	return limit(s)
}

// become refuses what would need another user than the agent's.
func become(s *Spec) error {
	if s.User || s.Parent != 0 {
		return errors.New("a task here has its agent's user, and no end with it")
	}
	return nil
}
