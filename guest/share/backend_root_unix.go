//go:build linux || darwin

package share

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// openNonblock keeps an open from waiting on a FIFO that was put in the file's place.
const openNonblock = syscall.O_NONBLOCK

func infoStat(info fs.FileInfo) stat {
	st := portableStat(info)
	sys, is := info.Sys().(*syscall.Stat_t)
	if !is {
		return st
	}
	st.dev, st.ino, st.nlink = uint64(sys.Dev), sys.Ino, uint32(sys.Nlink)
	st.blocks, st.blksize = uint64(max(sys.Blocks, 0)), uint32(min(max(sys.Blksize, 512), 1<<20))
	st.atime, st.ctime = statTimes(sys)
	st.remote = placeholder(sys)
	return st
}

// identify does nothing: a stat has the numbers.
func identify(*os.Root, *stat) error { return nil }

func rootStatfs(root *os.Root) (statfs, error) {
	f, err := root.Open(".")
	if err != nil {
		return statfs{}, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return statfs{}, err
	}
	return statfs{
		bsize: uint64(max(st.Bsize, 1)), blocks: st.Blocks, bfree: st.Bfree, bavail: uint64(st.Bavail), files: st.Files, free: st.Ffree,
	}, nil
}
