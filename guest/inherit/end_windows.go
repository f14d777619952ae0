package inherit

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/windows"
)

// End is one end of a stream between two processes that nobody has begun to use:
// a pipe for each direction. It is no os.File yet, since Windows ties a pipe's
// end to the first process that uses it (to its completion port), for as long as
// it is open anywhere; the process that it is handed to could neither set
// deadlines nor give up.
type End struct {
	name string
	// Leads: this end's process takes handles out of the other's and puts them
	// there. The other is the one that may be taken over.
	Leads bool

	mu   sync.Mutex
	r, w windows.Handle // 0: not there any more
}

// NewEnd makes an end of two handles, which become its own.
func NewEnd(name string, r, w windows.Handle) *End { return &End{name: name, r: r, w: w} }

// Name says what it is, for messages.
func (e *End) Name() string { return e.name }

// SyscallConn is there because streams have it on Unix: no one handle is the end.
func (e *End) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }

// Close lets go of it. It may be called twice, and after Files.
func (e *End) Close() error {
	if e == nil {
		return os.ErrInvalid
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range []windows.Handle{e.r, e.w} {
		if h != 0 {
			windows.CloseHandle(h)
		}
	}
	e.r, e.w = 0, 0
	return nil
}

// Files begins to use it: what is read from r, and written to w. They are the
// caller's.
func (e *End) Files() (r, w *os.File, err error) {
	if e == nil {
		return nil, nil, os.ErrInvalid
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.r == 0 {
		return nil, nil, fmt.Errorf("%s: %w", e.name, os.ErrClosed)
	}
	r, w = os.NewFile(uintptr(e.r), e.name), os.NewFile(uintptr(e.w), e.name)
	e.r, e.w = 0, 0
	return r, w, nil
}

// Duplicate puts both handles into another process, or this one, and returns
// what they are there.
func (e *End) Duplicate(to windows.Handle, inherited bool) (r, w windows.Handle, err error) {
	if e == nil {
		return 0, 0, os.ErrInvalid
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.r == 0 {
		return 0, 0, fmt.Errorf("%s: %w", e.name, os.ErrClosed)
	}
	own := windows.CurrentProcess()
	if err := windows.DuplicateHandle(own, e.r, to, &r, 0, inherited, windows.DUPLICATE_SAME_ACCESS); err != nil {
		return 0, 0, fmt.Errorf("hand %s on: %w", e.name, err)
	}
	if err := windows.DuplicateHandle(own, e.w, to, &w, 0, inherited, windows.DUPLICATE_SAME_ACCESS); err != nil {
		CloseIn(to, r)
		return 0, 0, fmt.Errorf("hand %s on: %w", e.name, err)
	}
	return r, w, nil
}

// CloseIn closes a handle of another process.
func CloseIn(process, h windows.Handle) {
	windows.DuplicateHandle(process, h, 0, nil, 0, false, windows.DUPLICATE_CLOSE_SOURCE)
}
