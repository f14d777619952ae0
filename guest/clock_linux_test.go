package guest

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatchClock has the kernel set its clock a microsecond forward, and back
// again (adjtimex(2), ADJ_SETOFFSET).
func TestWatchClock(t *testing.T) {
	w, err := watchClock()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	select {
	case <-w.jumped:
		// Somebody else has set the clock just now: then the next one is ours too.
	default:
	}
	const adjSetOffset = 0x0100
	_, err = unix.Adjtimex(&unix.Timex{Modes: adjSetOffset, Time: unix.Timeval{Usec: 1}})
	if errors.Is(err, unix.EPERM) {
		// Only who may set the clock can try it. CI may.
		t.Skip("this user may not set the clock (CAP_SYS_TIME): run it as root")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Adjtimex(&unix.Timex{Modes: adjSetOffset, Time: unix.Timeval{Sec: -1, Usec: 999999}})
	select {
	case <-w.jumped:
	case <-time.After(testPatience):
		t.Error("the kernel does not say that the clock jumped")
	}
}

// TestWatchTimerEnds: close ends what reads, and whatever else a read says too.
func TestWatchTimerEnds(t *testing.T) {
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w := watchTimer(r)
	wr.Write(make([]byte, 8))
	<-w.jumped // an expiry is as good as a jump
	w.close()
	wr.Close()
}
