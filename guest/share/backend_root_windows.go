package share

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

const openNonblock = 0

// infoStat: without inode numbers, the guest sees node ids in their place and no link counts. A
// file has nothing there that says that it is a program, so that each may be run, as in WSL's drives.
func infoStat(info fs.FileInfo) stat {
	st := portableStat(info)
	if info.Mode().IsRegular() {
		st.mode |= 0o111
	}
	if sys, is := info.Sys().(*syscall.Win32FileAttributeData); is {
		st.remote = recalled(sys.FileAttributes)
	}
	return st
}

// identify gives the root the numbers by which a grant knows its folder, which
// only a handle has.
func identify(root *os.Root, st *stat) error {
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var is syscall.ByHandleFileInformation
	cerr := c.Control(func(h uintptr) { err = syscall.GetFileInformationByHandle(syscall.Handle(h), &is) })
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	st.dev, st.ino = uint64(is.VolumeSerialNumber), uint64(is.FileIndexHigh)<<32|uint64(is.FileIndexLow)
	return nil
}

// rootStatfs tells plausible figures: 1 TiB, all of it free; the quota is what limits.
func rootStatfs(*os.Root) (statfs, error) {
	const blocks = 1 << 28
	return statfs{bsize: 4096, blocks: blocks, bfree: blocks, bavail: blocks, files: blocks, free: blocks}, nil
}

// fileTimes sets times through the handle; nil leaves one alone.
func fileTimes(f *os.File, c change) error {
	return syscall.SetFileTime(syscall.Handle(f.Fd()), nil, c.atime.filetime(), c.mtime.filetime())
}

func (t *timespec) filetime() *syscall.Filetime {
	if t == nil {
		return nil
	}
	ft := syscall.NsecToFiletime(t.time().UnixNano())
	return &ft
}
