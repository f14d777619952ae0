//go:build !linux

package place

import "errors"

// Memory is what only Linux says in one figure.
func Memory() (available, total int64, err error) { return 0, 0, errors.ErrUnsupported }
