package images

import (
	"context"
	"errors"
	"os"

	"github.com/carrel-vm/carrel/images/oci"
)

// writeFile makes a file that is durable when this returns; its name is not, see syncFolder.
func writeFile(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func hashFile(ctx context.Context, path string) (string, int64, error) {
	f, err := oci.OpenRegular(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	return hashReader(ctx, f)
}
