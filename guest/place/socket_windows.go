package place

import "os"

// CheckSocket returns an error unless path exists: the access lists of the
// user's own profile stand in for type and owner.
func CheckSocket(path string) error {
	_, err := os.Lstat(path)
	return err
}
