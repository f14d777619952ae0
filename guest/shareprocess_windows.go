package guest

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

func shareAttributes(cmd *exec.Cmd, _ bool) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NO_WINDOW | windows.CREATE_NEW_PROCESS_GROUP}
}
