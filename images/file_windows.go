package images

import "os"

// identify gives no ctime here, so roots are hashed at every start.
func identify(f *os.File) (identity, error) {
	fi, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	return identity{Size: fi.Size(), Mtime: fi.ModTime().UnixNano()}, nil
}

// syncFolder has nothing to do here: NTFS logs names, and a folder cannot be flushed.
func syncFolder(string) error { return nil }
