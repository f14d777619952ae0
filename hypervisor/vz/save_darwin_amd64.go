//go:build cgo

package vz

import "errors"

// Savable refuses before anybody comes here.
var errSave = errors.New("macOS saves no machines on this processor")

func (*translated) Save(string) error    { return errSave }
func (*translated) Restore(string) error { return errSave }
