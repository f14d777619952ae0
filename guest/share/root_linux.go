//go:build !carrelmac

package share

func pin(path string) (backend, stat, error) { return pinLinux(path) }
