//go:build unix

package agent

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// killSession kills what a task left in its session, where there are no control
// groups and others' environments cannot be read. Who has made a session of its
// own is not found: a daemon.
func (t *task) killSession() {
	if t.proc.reused() {
		return
	}
	// A process that forks meanwhile is found in the next round.
	for range 8 {
		found := false
		for pid := range processes {
			if pid == os.Getpid() {
				continue
			}
			if sid, err := unix.Getsid(pid); err == nil && sid == t.proc.pid {
				found = syscall.Kill(pid, syscall.SIGKILL) == nil || found
			}
		}
		if !found {
			return
		}
	}
}
