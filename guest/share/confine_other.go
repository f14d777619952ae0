//go:build !linux

package share

import "errors"

// Confine is what a share process does on Linux. Elsewhere the server runs in the keeper, which is confined by its own means.
func Confine(*Root, bool, ...string) error { return errors.ErrUnsupported }
