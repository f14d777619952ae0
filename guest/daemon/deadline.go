package daemon

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
)

// maxLate is how many calls may go on that were answered for, each with its request
// of maxRequest at most.
const maxLate = 256

// lateness is how long after its deadline a call may take to end in its own words.
const lateness = time.Second

// byDeadline makes a call of one answer, and answers for it when its deadline is
// past: most of what is waited for ends with its context, but not a lock, nor a file
// system. What was begun then goes on, and its answer is nobody's. A caller that
// went away is answered by nobody anyhow. What goes on keeps its request, and net/http
// does not count it any more: beyond maxLate of them a call is waited for.
func (d *Daemon) byDeadline(ctx context.Context, r connect.AnyRequest, next connect.UnaryFunc) (connect.AnyResponse, error) {
	if _, has := ctx.Deadline(); !has {
		return next(ctx, r)
	}
	type answer struct {
		out   connect.AnyResponse
		err   error
		fault any
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if a.fault = recover(); a.fault != nil {
				a.fault = fmt.Sprintf("%v\n%s", a.fault, debug.Stack())
			}
			done <- a
		}()
		a.out, a.err = next(ctx, r)
	}()
	var late <-chan time.Time
	over := ctx.Done()
	for {
		select {
		case a := <-done:
			if a.fault != nil {
				panic(a.fault) // net/http's, as without a deadline
			}
			return a.out, a.err
		case <-over:
			over = nil
			t := time.NewTimer(lateness)
			defer t.Stop()
			late = t.C
		case <-late:
			if d.late.Add(1) > maxLate {
				d.late.Add(-1)
				late = nil
				continue
			}
			go func() {
				defer d.late.Add(-1)
				if a := <-done; a.fault != nil {
					d.log.Error("a call failed after its deadline", "procedure", r.Spec().Procedure, "fault", a.fault)
				}
			}()
			return nil, ctx.Err()
		}
	}
}
