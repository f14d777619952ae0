//go:build !linux

package share

import "errors"

// below has no second backend to open for here.
func below(backend, string) (backend, error) { return nil, errors.ErrUnsupported }

// Descriptor is for cloning; there is none here.
func (h *Handle) Descriptor() int { return -1 }

func startSync(file) {}
