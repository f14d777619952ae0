//go:build !carrelmac

package guest

import (
	"os/exec"
	"syscall"
)

// shelfNetwork is the kind of socket that shares are handed over on.
const shelfNetwork = "unixpacket"

func shareAttributes(cmd *exec.Cmd, outlive bool) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if outlive {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
}
