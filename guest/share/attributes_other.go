//go:build !linux

package share

// CopyAttributes does nothing on hosts for which it is not written.
func (h *Handle) CopyAttributes(*Handle) error { return nil }
