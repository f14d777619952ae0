//go:build unix

package secret

import (
	"fmt"
	"os"
	"syscall"
)

// private refuses a file that is not this user's, or that others may read: who
// could read it may have taken what is in it.
func private(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s is not a file (move it away)", f.Name())
	case !ok || int(st.Uid) != os.Getuid():
		return fmt.Errorf("%s belongs to another user (move it away)", f.Name())
	case fi.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s can be read by others: its mode is %04o (take its secrets for known; chmod 600 %s)", f.Name(), fi.Mode().Perm(), f.Name())
	}
	return nil
}
