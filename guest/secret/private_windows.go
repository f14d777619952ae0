package secret

import (
	"fmt"
	"os"

	"github.com/carrel-vm/carrel/guest/place"
)

// private refuses a file that is not this user's, or that others may read: who
// could read it may have taken what is in it.
func private(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file (move it away)", f.Name())
	}
	if err := place.CheckFile(f); err != nil {
		return fmt.Errorf("%w (take its secrets for known)", err)
	}
	return nil
}
