package share

import "syscall"

// placeholder: see cloud.go.
func placeholder(sys *syscall.Stat_t) bool { return dataless(sys.Flags) }

func statTimes(sys *syscall.Stat_t) (atime, ctime timespec) {
	return timespec{sec: sys.Atimespec.Sec, nsec: uint32(sys.Atimespec.Nsec)},
		timespec{sec: sys.Ctimespec.Sec, nsec: uint32(sys.Ctimespec.Nsec)}
}
