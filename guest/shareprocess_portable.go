//go:build unix && (!linux || carrelmac)

package guest

import (
	"os/exec"
	"syscall"
)

// shelfNetwork is the kind of socket that shares are handed over on: packets are
// framed there (guest/packet).
const shelfNetwork = "unix"

// shareAttributes: nothing here ends a process with its parent. A share process
// ends with its control socket, whose other end its keeper alone has open, in
// whatever way that ends: it reads from the socket all the time.
func shareAttributes(cmd *exec.Cmd, outlive bool) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: outlive}
}
