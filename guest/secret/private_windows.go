package secret

import (
	"fmt"
	"os"
)

// private refuses what is not a file. The access lists of the user's profile
// stand in for mode and owner.
func private(f *os.File) error {
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file (move it away)", f.Name())
	}
	return err
}
