package hcs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// The functions of computecore.dll, as computecore.h declares them. Handles are
// pointers there and mean nothing here. A function that is not there is an error
// of the call.
var (
	computecore = windows.NewLazySystemDLL("computecore.dll")

	hcsCreateOperation            = computecore.NewProc("HcsCreateOperation")
	hcsCloseOperation             = computecore.NewProc("HcsCloseOperation")
	hcsCancelOperation            = computecore.NewProc("HcsCancelOperation")
	hcsWaitForOperationResult     = computecore.NewProc("HcsWaitForOperationResult")
	hcsCreateComputeSystem        = computecore.NewProc("HcsCreateComputeSystem")
	hcsCloseComputeSystem         = computecore.NewProc("HcsCloseComputeSystem")
	hcsStartComputeSystem         = computecore.NewProc("HcsStartComputeSystem")
	hcsTerminateComputeSystem     = computecore.NewProc("HcsTerminateComputeSystem")
	hcsPauseComputeSystem         = computecore.NewProc("HcsPauseComputeSystem")
	hcsResumeComputeSystem        = computecore.NewProc("HcsResumeComputeSystem")
	hcsGetComputeSystemProperties = computecore.NewProc("HcsGetComputeSystemProperties")
	hcsWaitForComputeSystemExit   = computecore.NewProc("HcsWaitForComputeSystemExit")
	hcsGrantVMAccess              = computecore.NewProc("HcsGrantVmAccess")
	hcsRevokeVMAccess             = computecore.NewProc("HcsRevokeVmAccess")
	hcsGetServiceProperties       = computecore.NewProc("HcsGetServiceProperties")

	procedures = []*windows.LazyProc{
		hcsCreateOperation, hcsCloseOperation, hcsCancelOperation, hcsWaitForOperationResult, hcsCreateComputeSystem,
		hcsCloseComputeSystem, hcsStartComputeSystem, hcsTerminateComputeSystem, hcsPauseComputeSystem, hcsResumeComputeSystem,
		hcsGetComputeSystemProperties, hcsWaitForComputeSystemExit, hcsGrantVMAccess, hcsRevokeVMAccess, hcsGetServiceProperties,
	}
)

// library returns an error unless every function is there.
func library() error {
	for _, p := range procedures {
		if err := find(p); err != nil {
			return err
		}
	}
	return nil
}

// find is LazyProc.Find with an error of ours: LazyProc.Call panics instead.
func find(p *windows.LazyProc) error {
	err := p.Find()
	if err == nil {
		return nil
	}
	f := &Failure{Call: p.Name, Result: 0x8007007f, Detail: err.Error()}
	if computecore.Load() != nil {
		f.Result = 0x8007007e
	}
	return f
}

// call calls a function that returns an HRESULT.
//
//go:uintptrescapes
func call(p *windows.LazyProc, args ...uintptr) error {
	if err := find(p); err != nil {
		return err
	}
	r, _, _ := p.Call(args...)
	if h := HRESULT(r); h.Failed() {
		return &Failure{Call: p.Name, Result: h}
	}
	return nil
}

// documentMax is the longest answer that is read, in UTF-16 units.
const documentMax = 64 << 10

// take copies an answer of HCS and frees it (the documents of computecore.h say
// LocalFree).
func take(p *uint16) string {
	if p == nil {
		return ""
	}
	defer windows.LocalFree(windows.Handle(unsafe.Pointer(p)))
	n := 0
	for n < documentMax && *(*uint16)(unsafe.Add(unsafe.Pointer(p), 2*n)) != 0 {
		n++
	}
	return windows.UTF16ToString(unsafe.Slice(p, n))
}

// operation is one call of HCS that goes on after its function returned.
type operation struct {
	mu     sync.Mutex
	handle uintptr // 0 when closed
}

func newOperation() (*operation, error) {
	if err := find(hcsCreateOperation); err != nil {
		return nil, err
	}
	if h, _, errno := hcsCreateOperation.Call(0, 0); h != 0 {
		return &operation{handle: h}, nil
	} else {
		return nil, fmt.Errorf("HcsCreateOperation: %w", errno)
	}
}

func (o *operation) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.handle != 0 && find(hcsCloseOperation) == nil {
		hcsCloseOperation.Call(o.handle)
	}
	o.handle = 0
}

// cancel asks for an early end. Not every operation can be cancelled.
func (o *operation) cancel() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.handle != 0 && find(hcsCancelOperation) == nil {
		hcsCancelOperation.Call(o.handle)
	}
}

// wait waits for the end, limit at most.
func (o *operation) wait(limit time.Duration) (string, error) {
	var document *uint16
	err := call(hcsWaitForOperationResult, o.handle, milliseconds(limit), uintptr(unsafe.Pointer(&document)))
	words := take(document)
	var f *Failure
	if errors.As(err, &f) {
		f.Detail = detail(words)
	}
	return words, err
}

func milliseconds(d time.Duration) uintptr {
	return uintptr(min(max(d.Milliseconds(), 0), 1<<31))
}

// system is a compute system, which Close closes once nothing uses it any more.
type system struct {
	handle uintptr
	used   sync.WaitGroup // by operations that go on

	once sync.Once
}

// createSystem makes a compute system, which does not run yet.
func createSystem(ctx context.Context, id string, document []byte, limit time.Duration) (*system, error) {
	wid, err := windows.UTF16PtrFromString(id)
	if err != nil {
		return nil, err
	}
	wdoc, err := windows.UTF16PtrFromString(string(document))
	if err != nil {
		return nil, err
	}
	s := &system{}
	_, err = s.run(ctx, "HcsCreateComputeSystem", limit, func(o uintptr) error {
		return call(hcsCreateComputeSystem, uintptr(unsafe.Pointer(wid)), uintptr(unsafe.Pointer(wdoc)), o, 0, uintptr(unsafe.Pointer(&s.handle)))
	})
	if err != nil {
		// Where the context ended first, the system may come after all: it goes
		// with its only handle, limit later at most.
		go s.close()
		return nil, err
	}
	return s, nil
}

// run begins an operation and waits for its end, for limit at most. If ctx ends
// first, run returns its error, the operation is asked to end and is closed when
// it has: until then it keeps the system open, since HCS crashes who closes what
// it still uses (hcsshim, internal/computecore).
func (s *system) run(ctx context.Context, name string, limit time.Duration, begin func(operation uintptr) error) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	o, err := newOperation()
	if err != nil {
		return "", err
	}
	type result struct {
		document string
		err      error
	}
	ended := make(chan result, 1)
	s.used.Go(func() {
		r := result{err: begin(o.handle)}
		if r.err == nil {
			r.document, r.err = o.wait(limit)
		}
		var f *Failure
		if errors.As(r.err, &f) {
			f.Call = name // it is the operation's result
		}
		o.close()
		ended <- r
	})
	select {
	case r := <-ended:
		return r.document, r.err
	case <-ctx.Done():
		o.cancel()
		return "", fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
}

// do runs an operation whose function takes options, of which we have none.
func (s *system) do(ctx context.Context, p *windows.LazyProc, limit time.Duration) error {
	_, err := s.run(ctx, p.Name, limit, func(o uintptr) error { return call(p, s.handle, o, 0) })
	return err
}

// properties asks for the basic ones.
func (s *system) properties(ctx context.Context, limit time.Duration) (string, error) {
	return s.run(ctx, hcsGetComputeSystemProperties.Name, limit, func(o uintptr) error {
		return call(hcsGetComputeSystemProperties, s.handle, o, 0)
	})
}

// waitExit waits for the system's end, without a bound, and returns what the
// service says of it.
func (s *system) waitExit() (string, error) {
	var document *uint16
	err := call(hcsWaitForComputeSystemExit, s.handle, windows.INFINITE, uintptr(unsafe.Pointer(&document)))
	return take(document), err
}

// close closes the system when nothing uses it any more; with its last handle the
// system ends.
func (s *system) close() {
	s.once.Do(func() {
		s.used.Wait()
		if s.handle != 0 && find(hcsCloseComputeSystem) == nil {
			hcsCloseComputeSystem.Call(s.handle)
		}
	})
}

// access lets the guest's worker process open a file, or takes that back.
func access(p *windows.LazyProc, id, file string) error {
	wid, err := windows.UTF16PtrFromString(id)
	if err != nil {
		return err
	}
	wfile, err := windows.UTF16PtrFromString(file)
	if err != nil {
		return err
	}
	if err := call(p, uintptr(unsafe.Pointer(wid)), uintptr(unsafe.Pointer(wfile))); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// ask asks the service which versions of the schema it has: harmless, and an
// answer says that it runs and that this user may use it.
func ask() error {
	query, err := windows.UTF16PtrFromString(`{"PropertyTypes":["Basic"]}`)
	if err != nil {
		return err
	}
	var document *uint16
	err = call(hcsGetServiceProperties, uintptr(unsafe.Pointer(query)), uintptr(unsafe.Pointer(&document)))
	take(document)
	return err
}
