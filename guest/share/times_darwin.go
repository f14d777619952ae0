package share

import (
	"os"

	"golang.org/x/sys/unix"
)

// fileTimes sets times through the descriptor. futimes has microseconds, and both times at once: one that is to stay is set
// to what it is.
func fileTimes(f *os.File, c change) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st := infoStat(info)
	if c.atime == nil {
		c.atime = &st.atime
	}
	if c.mtime == nil {
		c.mtime = &st.mtime
	}
	at, mt := c.atime.time(), c.mtime.time()
	return unix.Futimes(int(f.Fd()), []unix.Timeval{
		unix.NsecToTimeval(at.UnixNano()), unix.NsecToTimeval(mt.UnixNano()),
	})
}
