//go:build unix

package secret

import "os"

// openToOthers lets others read what lies at path, as mode says.
func openToOthers(path string, mode os.FileMode) error { return os.Chmod(path, mode) }
