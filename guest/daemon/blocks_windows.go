package daemon

import (
	"io/fs"
	"os"

	"github.com/carrel-vm/carrel/guest/daemon/emptydisk"
)

// blocksOf is a file's size: what of it is holes is not looked up here.
func blocksOf(fi fs.FileInfo) int64 { return fi.Size() }

// diskSize is how large a disk is for its guest: its file grows with what is in it.
func diskSize(path string, _ fs.FileInfo) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return emptydisk.Size(f)
}

// lockedMoves: a folder in which a file is open can be renamed.
const lockedMoves = false
