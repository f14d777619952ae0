//go:build !linux

package share

func pin(path string) (backend, stat, error) { return pinPortable(path) }
