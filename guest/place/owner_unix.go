//go:build unix

package place

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// shortTemp is not os.TempDir: that one is long on macOS, and may differ
// between the daemon's environment and its caller's.
func shortTemp() string { return "/tmp" }

func mkdirPrivate(dir string) error { return os.Mkdir(dir, 0o700) }

func checkOwner(dir string, fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: its owner is unknown", dir)
	}
	if uid := os.Geteuid(); int64(st.Uid) != int64(uid) {
		return fmt.Errorf("%s belongs to user %d, not to you (%d): another user may have made it in your way; remove it, or set CARREL_HOME", dir, st.Uid, uid)
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o, so that others may enter it: look at what is in it, then `chmod 700 %s`", dir, perm, dir)
	}
	return nil
}
