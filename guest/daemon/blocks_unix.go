//go:build unix

package daemon

import (
	"io/fs"
	"syscall"
)

// blocksOf is what a file takes on its disk: st_blocks counts 512 bytes each,
// whatever the file system's own blocks are (stat(2)).
func blocksOf(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return fi.Size()
}

// diskSize is how large a disk is for its guest: as its file, which has holes.
func diskSize(_ string, fi fs.FileInfo) (int64, error) { return fi.Size(), nil }

// lockedMoves: a folder in which a file is open can be renamed.
const lockedMoves = true
