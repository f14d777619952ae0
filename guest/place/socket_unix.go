//go:build unix

package place

import (
	"fmt"
	"os"
	"syscall"
)

// CheckSocket returns an error unless path is a socket, not a link to one, that
// belongs to this user.
func CheckSocket(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is not a socket: remove it", path)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int64(st.Uid) != int64(os.Geteuid()) {
		return fmt.Errorf("%s does not belong to you (%d): another user made it; remove it", path, os.Geteuid())
	}
	return nil
}
