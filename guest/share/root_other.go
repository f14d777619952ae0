//go:build !linux || carrelmac

package share

// With the tag carrelmac Linux, too, serves by the portable backend, so that what
// other hosts run can be run somewhere.

func pin(path string) (backend, stat, error) { return pinPortable(path) }
