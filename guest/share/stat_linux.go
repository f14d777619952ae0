package share

import (
	"math"

	"golang.org/x/sys/unix"
)

func fstat(fd int) (stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return stat{}, err
	}
	return stat{
		dev: st.Dev, ino: st.Ino, size: uint64(max(st.Size, 0)), blocks: uint64(max(st.Blocks, 0)),
		atime: timespec{sec: st.Atim.Sec, nsec: uint32(st.Atim.Nsec)},
		mtime: timespec{sec: st.Mtim.Sec, nsec: uint32(st.Mtim.Nsec)},
		ctime: timespec{sec: st.Ctim.Sec, nsec: uint32(st.Ctim.Nsec)},
		mode:  st.Mode, nlink: uint32(min(uint64(st.Nlink), math.MaxUint32)), blksize: uint32(min(max(st.Blksize, 512), 1<<20)),
	}, nil
}

// lstatat looks at one name in a directory with one call, and at nothing that is mounted there.
func lstatat(fd int, name string) (stat, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st); err != nil {
		return stat{}, err
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return stat{}, unix.EACCES
	}
	return stat{
		dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino, size: st.Size, blocks: st.Blocks,
		atime: timespec{sec: st.Atime.Sec, nsec: st.Atime.Nsec},
		mtime: timespec{sec: st.Mtime.Sec, nsec: st.Mtime.Nsec},
		ctime: timespec{sec: st.Ctime.Sec, nsec: st.Ctime.Nsec},
		mode:  uint32(st.Mode), nlink: st.Nlink, blksize: min(max(st.Blksize, 512), 1<<20),
	}, nil
}
