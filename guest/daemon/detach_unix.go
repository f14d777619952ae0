//go:build unix

package daemon

import (
	"os/exec"
	"syscall"
)

// detach makes a keeper a session of its own, out of reach of this one's terminal.
func detach(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
