package guest

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// watchClock has the kernel say when the wall clock is set, also at the end of a
// suspension: a timer that is to be cancelled by that (timerfd_create(2),
// TFD_TIMER_CANCEL_ON_SET). It is never to expire: the kernel cuts the time to
// some 290 years.
func watchClock() (*clockWatch, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the clock: %w", os.NewSyscallError("timerfd_create", err))
	}
	never := &unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32 * 4}} // the year 2242
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, never, nil); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch the clock: %w", os.NewSyscallError("timerfd_settime", err))
	}
	return watchTimer(os.NewFile(uintptr(fd), "clock")), nil
}

// watchTimer passes on what reads of a timer say, whose file it takes over.
func watchTimer(f *os.File) *clockWatch {
	jumped, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 8)
		for {
			_, err := f.Read(b)
			if err != nil && !errors.Is(err, unix.ECANCELED) {
				return // closed
			}
			select {
			case jumped <- struct{}{}:
			default: // one that nobody has taken says as much
			}
		}
	}()
	return &clockWatch{jumped: jumped, close: func() { f.Close(); <-done }}
}
