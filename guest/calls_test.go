package guest

import (
	"testing"
	"testing/synctest"
	"time"
)

// A task that was killed has a while to go, which it does by the signal. One that stays,
// the control, has its stream closed in the end.
func TestCancelWaitsForTheKill(t *testing.T) {
	for _, goes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			closed := make(chan struct{})
			task := &task{in: newInput(), ended: make(chan struct{}), stop: func() { close(closed) }}
			over := make(chan struct{})
			go func() { defer close(over); task.cancel(0) }()
			time.Sleep(5 * time.Second) // as a busy machine does
			select {
			case <-closed:
				t.Error("after 5 s its stream is closed")
			default:
			}
			if goes {
				close(task.ended)
			}
			<-over
			select {
			case <-closed:
				if goes {
					t.Error("it has gone, and its stream was closed")
				}
			default:
				if !goes {
					t.Error("it stays, and its stream is open")
				}
			}
		})
	}
}
