package daemon

import (
	"testing"
	"time"
)

var ballast [][]byte

// What a burst has needed is given back after it, once; and nothing is done again
// when there is nothing to gain.
func TestRest(t *testing.T) {
	r := new(rest)
	r.now()
	for range 64 {
		ballast = append(ballast, make([]byte, 1<<20))
	}
	full := heapHeld()
	ballast = nil
	r.now()
	if after := heapHeld(); after > full-(48<<20) {
		t.Errorf("of %d MiB of heap %d are still held", full>>20, after>>20)
	}
	least := r.least
	if r.now(); r.least != least {
		t.Errorf("it was done again for nothing: %d, %d before", r.least, least)
	}
	// The timer is one, however often it is moved, and it is over when it is ended.
	r.moved()
	timer := r.timer
	r.moved()
	if r.timer != timer {
		t.Error("a second timer")
	}
	r.end()
	if timer.Reset(time.Hour) {
		t.Error("it still runs when it was ended")
	}
	timer.Stop()
}
