//go:build !windows

package inherit

import "os"

// End is an open file that is for another process, or was handed over by one and
// is not used yet. On Unix that is a file as any other.
type End = os.File

// Take returns descriptor n of those that this process was started with, which
// is one end of a stream between processes.
func Take(n int, name string) *End { return File(n, name) }
