package daemon

import (
	"os/exec"
	"syscall"
)

// detach makes a keeper outlive the console of this process.
func detach(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
