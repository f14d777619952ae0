package share

import "syscall"

func statTimes(sys *syscall.Stat_t) (atime, ctime timespec) {
	return timespec{sec: sys.Atimespec.Sec, nsec: uint32(sys.Atimespec.Nsec)},
		timespec{sec: sys.Ctimespec.Sec, nsec: uint32(sys.Ctimespec.Nsec)}
}
