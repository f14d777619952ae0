package daemon

import (
	"bytes"
	"os"
	"strconv"
)

// residentBytes is what this process holds in memory: the second field of
// /proc/self/statm, in pages (proc(5)).
func residentBytes() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	n, err := strconv.ParseInt(string(f[1]), 10, 64)
	if err != nil {
		return 0
	}
	return n * int64(os.Getpagesize())
}
