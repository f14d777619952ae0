//go:build carreltest && !windows

package guest

import (
	"os"
	"syscall"
)

// Crash ends this process as kill -9 would, if CARREL_CRASH names this point and
// the file CARREL_CRASH_MARK does not exist yet. Only test builds have it.
func Crash(point string) {
	if os.Getenv("CARREL_CRASH") != point {
		return
	}
	f, err := os.OpenFile(os.Getenv("CARREL_CRASH_MARK"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return // it has crashed here once
	}
	f.Close()
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
