package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/wire"
)

// input is what goes to a running task: stdin within its window, and signals
// and sizes, which never wait behind stdin.
type input struct {
	mu      sync.Mutex
	cond    *sync.Cond
	control []*wire.Input
	stdin   []byte
	total   int64  // bytes of stdin that were ever queued
	eof     bool   // stdin has ended
	eofSent bool   //
	way     uint32 // bytes of stdin that the guest has not taken
	over    bool   // the task has ended
}

// maxControl bounds the signals and sizes that wait for a guest.
const maxControl = 256

func newInput() *input {
	in := new(input)
	in.cond = sync.NewCond(&in.mu)
	return in
}

// write queues stdin and waits while too much of it is queued.
func (in *input) write(ctx context.Context, p []byte) error {
	_, err := in.writeAt(ctx, nil, p)
	return err
}

// offsetError is an offset beyond what was written.
type offsetError struct{ at, total int64 }

func (e *offsetError) Error() string {
	return fmt.Sprintf("the input has %d bytes, and these would begin at %d", e.total, e.at)
}

// writeAt is write at an offset of the input, of which only what is new is
// queued; nil: at its end. It returns how much was queued in all.
func (in *input) writeAt(ctx context.Context, offset *int64, p []byte) (int64, error) {
	defer context.AfterFunc(ctx, in.wake)()
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		rest := p
		if offset != nil {
			known := in.total - *offset
			if known < 0 || *offset < 0 {
				return in.total, &offsetError{*offset, in.total}
			}
			rest = p[min(known, int64(len(p))):]
		}
		switch {
		case ctx.Err() != nil:
			return in.total, ctx.Err()
		case len(rest) == 0:
			return in.total, nil
		case in.over || in.eof:
			return in.total, os.ErrClosed
		case len(in.stdin) == 0 || len(in.stdin)+len(rest) <= wire.StdinWindow:
			in.stdin = append(in.stdin, rest...)
			in.total += int64(len(rest))
			in.cond.Broadcast()
			return in.total, nil
		}
		in.cond.Wait()
	}
}

// closeWrite ends stdin after what is queued.
func (in *input) closeWrite() {
	in.mu.Lock()
	in.eof = true
	in.cond.Broadcast()
	in.mu.Unlock()
}

func (in *input) signal(n int32) {
	in.send(&wire.Input{Kind: &wire.Input_Signal{Signal: &wire.Signal{Number: n}}})
}

func (in *input) resize(rows, cols uint32) {
	in.send(&wire.Input{Kind: &wire.Input_Resize{Resize: &wire.Resize{Rows: min(rows, 1<<15), Cols: min(cols, 1<<15)}}})
}

func (in *input) send(f *wire.Input) {
	in.mu.Lock()
	if len(in.control) < maxControl && !in.over {
		in.control = append(in.control, f)
	}
	in.cond.Broadcast()
	in.mu.Unlock()
}

// taken notes what the guest says it has taken, and says whether that can be.
func (in *input) taken(n uint32) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if n > in.way {
		return false
	}
	in.way -= n
	in.cond.Broadcast()
	return true
}

// end lets go of what nobody takes any more: a task is remembered for long after.
func (in *input) end() {
	in.mu.Lock()
	in.over, in.stdin, in.control = true, nil, nil
	in.cond.Broadcast()
	in.mu.Unlock()
}

func (in *input) wake() {
	in.mu.Lock()
	in.cond.Broadcast()
	in.mu.Unlock()
}

// pump sends what is queued until the task has ended or the guest does not read.
func (in *input) pump(conn net.Conn) {
	for {
		f := in.next()
		if f == nil {
			return
		}
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err := wire.Write(conn, f); err != nil {
			// A task that has ended reads no input, and its exit may still be on its way
			// here: only a guest that takes nothing any more is hung up on.
			if errors.Is(err, os.ErrDeadlineExceeded) {
				conn.Close() // the reader of the output says why
			}
			in.end()
			return
		}
	}
}

// next waits for the next frame; nil when there will be none.
func (in *input) next() proto.Message {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		switch {
		case in.over:
			return nil
		case len(in.control) > 0:
			f := in.control[0]
			in.control = in.control[1:]
			return f
		case len(in.stdin) > 0 && in.way < wire.StdinWindow:
			n := min(len(in.stdin), wire.DataChunk, wire.StdinWindow-int(in.way))
			p := append([]byte(nil), in.stdin[:n]...)
			in.stdin = append(in.stdin[:0], in.stdin[n:]...)
			in.way += uint32(n)
			in.cond.Broadcast()
			return &wire.Input{Kind: &wire.Input_Stdin{Stdin: p}}
		case in.eof && len(in.stdin) == 0 && !in.eofSent:
			in.eofSent = true
			return &wire.Input{Kind: &wire.Input_StdinClose{StdinClose: &wire.StdinClose{}}}
		}
		in.cond.Wait()
	}
}
