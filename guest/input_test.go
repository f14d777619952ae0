package guest

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Input that is written again, from whatever offset, is there once.
func TestInputAt(t *testing.T) {
	in := newInput()
	at := func(n int64) *int64 { return &n }
	for _, w := range []struct {
		offset *int64
		data   string
		total  int64
		bad    bool
	}{
		{at(0), "hello", 5, false}, {at(0), "hello", 5, false}, {at(3), "lo wor", 9, false}, {nil, "ld", 11, false},
		{at(11), "", 11, false}, {at(12), "x", 11, true}, {at(-1), "x", 11, true}, {at(2), "x", 11, false},
	} {
		n, err := in.writeAt(t.Context(), w.offset, []byte(w.data))
		if n != w.total || (err != nil) != w.bad {
			t.Errorf("%v %q: %d %v", w.offset, w.data, n, err)
		}
	}
	if got := string(in.stdin); got != "hello world" {
		t.Fatalf("%q", got)
	}
	// More than fits waits, and is given up with its caller.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := in.writeAt(ctx, nil, []byte(strings.Repeat("x", wire.StdinWindow))); n != 11 || !errors.Is(err, context.Canceled) {
		t.Error(n, err)
	}
	in.closeWrite()
	if _, err := in.writeAt(t.Context(), at(0), []byte("hello")); err != nil {
		t.Error("what is there already is no error after the end:", err)
	}
	if _, err := in.writeAt(t.Context(), nil, []byte("more")); err == nil {
		t.Error("written after the end")
	}
}

// A task that has ended is remembered, and what was on its way to it is not: a
// keeper with thousands of them would hold a window of input for each.
func TestEndedInputHoldsNothing(t *testing.T) {
	in := newInput()
	if err := in.write(t.Context(), make([]byte, wire.StdinWindow)); err != nil {
		t.Fatal(err)
	}
	in.signal(15)
	for range 2 { // the signal, and some of the input
		if in.next() == nil {
			t.Fatal("control: nothing was on its way")
		}
	}
	in.signal(15)
	if cap(in.stdin) == 0 || cap(in.control) == 0 {
		t.Fatal("control: nothing is held")
	}
	in.end()
	in.signal(9)
	in.resize(24, 80)
	if err := in.write(t.Context(), []byte("late")); err == nil {
		t.Error("input was taken after the end")
	}
	if cap(in.stdin) != 0 || cap(in.control) != 0 || in.next() != nil {
		t.Errorf("it holds %d bytes and %d signals", cap(in.stdin), cap(in.control))
	}
}

// deaf is a stream whose other end takes nothing.
type deaf struct {
	net.Conn
	err    error
	closed bool
}

func (d *deaf) SetWriteDeadline(time.Time) error { return nil }
func (d *deaf) Write([]byte) (int, error)        { return 0, d.err }
func (d *deaf) Close() error                     { d.closed = true; return nil }

// A task that ends before it has read its input has said its exit by then: the
// stream on which that comes is left to its reader. One that takes nothing and does
// not end either is hung up on.
func TestInputThatNobodyTakes(t *testing.T) {
	for _, c := range []struct {
		err    error
		closed bool
	}{
		{&net.OpError{Op: "write", Err: syscall.EPIPE}, false},
		{&net.OpError{Op: "write", Err: syscall.ECONNRESET}, false},
		{&net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}, true},
	} {
		in := newInput()
		if err := in.write(t.Context(), []byte("input")); err != nil {
			t.Fatal(err)
		}
		conn := &deaf{err: c.err}
		in.pump(conn)
		if conn.closed != c.closed {
			t.Errorf("%v: closed %v", c.err, conn.closed)
		}
		if err := in.write(t.Context(), []byte("more")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v: input after that: %v", c.err, err)
		}
	}
}
