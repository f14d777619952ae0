//go:build unix

package bundle

import (
	"errors"
	"os"
)

// modes says whether a file's mode says who may read it.
const modes = true

// syncFolder makes the names in a folder durable.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
