//go:build unix

package place

import (
	"math"
	"math/bits"

	"golang.org/x/sys/unix"
)

// space returns the bytes that an ordinary user may still write, and all.
func space(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	bytes := func(blocks uint64) int64 {
		hi, lo := bits.Mul64(blocks, uint64(st.Bsize))
		if hi != 0 || lo > math.MaxInt64 {
			return math.MaxInt64
		}
		return int64(lo)
	}
	return bytes(uint64(st.Bavail)), bytes(uint64(st.Blocks)), nil
}
