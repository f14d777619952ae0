package share

import "syscall"

func placeholder(*syscall.Stat_t) bool { return false }

func statTimes(sys *syscall.Stat_t) (atime, ctime timespec) {
	return timespec{sec: sys.Atim.Sec, nsec: uint32(sys.Atim.Nsec)}, timespec{sec: sys.Ctim.Sec, nsec: uint32(sys.Ctim.Nsec)}
}
