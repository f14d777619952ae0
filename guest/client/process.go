package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

const (
	// maxTries bounds how often a broken stream is taken up again without a
	// byte of progress in between.
	maxTries = 5
	// maxControl bounds the signals and sizes that wait for a stream.
	maxControl = 64
	// ackTimeout bounds how long an ended task's stream may take to close.
	ackTimeout = 5 * time.Second
	// besideTime bounds a signal to a task that was attached to.
	besideTime = 10 * time.Second
)

// Process is a task that was started or attached to.
//
//	attaching → streaming → over
//	    ↑           │
//	    └── broken ─┘   at most maxTries times without progress
//
// One goroutine owns the stream and receives, a second one sends signals and
// sizes on it. Input has a stream of its own (stdin.go), so that signals never
// wait behind input that the task does not read.
type Process struct {
	Guest string
	// ID is the task's.
	ID string

	c              *Client
	own, tty       bool // own: this client started the task
	noFollow       bool
	stdout, stderr io.Writer
	notice         func(string)

	next int64 // the owner's; read by others only after done
	task *api.Task
	err  error
	done chan struct{}

	mu      sync.Mutex
	cond    *sync.Cond
	stream  *attachStream
	control []*api.AttachRequest
	over    bool
	wrote   bool // input has been handed to a stream
	cancel  context.CancelCauseFunc
}

// attachStream is one connection. Sends may not overlap each other.
type attachStream struct {
	*connect.BidiStreamForClient[api.AttachRequest, api.AttachResponse]
	sendMu sync.Mutex
}

func (s *attachStream) send(m *api.AttachRequest) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.Send(m)
}

func (c *Client) follow(ctx context.Context, p *Process, stdin io.Reader) *Process {
	p.c, p.done = c, make(chan struct{})
	p.cond = sync.NewCond(&p.mu)
	if p.stdout == nil {
		p.stdout = io.Discard
	}
	if p.stderr == nil {
		p.stderr = io.Discard
	}
	if p.notice == nil {
		p.notice = func(string) {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	p.cancel = cancel
	var senders sync.WaitGroup
	senders.Go(p.sendControl)
	if stdin != nil {
		// Not in senders: a read of a terminal cannot be called off.
		go p.sendStdin(ctx, stdin)
	}
	go func() {
		defer close(p.done)
		p.err = p.stayAttached(ctx)
		cancel(nil)
		p.mu.Lock()
		p.over = true
		p.stream = nil
		p.cond.Broadcast()
		p.mu.Unlock()
		senders.Wait()
	}()
	return p
}

// Wait returns when the task is over: nil for status 0, an *ExitError for any
// other end, ErrTruncated (wrapped) when its end is not known.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Done is closed when Wait would return at once.
func (p *Process) Done() <-chan struct{} { return p.done }

// Next returns the offset of the first byte of output that was not received.
// It may be called after Wait.
func (p *Process) Next() int64 { return p.next }

// Task returns the task as it was last seen, or nil. It may be called after
// Wait.
func (p *Process) Task() *api.Task { return p.task }

// Signal sends a signal to the task's process group. To a task that this client
// started it goes with the stream: it is not waited for, and kept while the stream
// is broken. To one that was attached to it goes by itself, since that one's stream
// is not its input, and has arrived when Signal returns.
func (p *Process) Signal(s Signal) error {
	if !p.own {
		return p.beside("signal", func(ctx context.Context) error {
			_, err := p.c.tasks.Signal(ctx, connect.NewRequest(&api.SignalTaskRequest{Guest: p.Guest, Task: p.ID, Signal: int32(s)}))
			return err
		})
	}
	return p.queue(&api.AttachRequest{Kind: &api.AttachRequest_Signal{Signal: int32(s)}})
}

// beside calls for a task that was attached to. It does so once: after a broken
// answer nobody knows whether a signal has arrived.
func (p *Process) beside(what string, call func(context.Context) error) error {
	select {
	case <-p.done:
		return errOver
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), besideTime)
	defer cancel()
	return wrap(what+" task "+p.ID+" in guest "+p.Guest, call(ctx))
}

// Resize tells the task's terminal its new size, in cells, as Signal does.
func (p *Process) Resize(rows, cols uint32) error {
	if !p.own {
		return p.beside("resize", func(ctx context.Context) error {
			_, err := p.c.tasks.Resize(ctx, connect.NewRequest(&api.ResizeTaskRequest{Guest: p.Guest, Task: p.ID, Rows: rows, Cols: cols}))
			return err
		})
	}
	return p.queue(&api.AttachRequest{Kind: &api.AttachRequest_Resize{Resize: &api.Resize{Rows: rows, Cols: cols}}})
}

var errOver = errors.New("the task is over")

func (p *Process) queue(m *api.AttachRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.over:
		return errOver
	case len(p.control) >= maxControl:
		return errors.New("too many signals wait for the task")
	}
	p.control = append(p.control, m)
	p.cond.Broadcast()
	return nil
}

// stayAttached attaches, and again after each break, from where the last stream
// ended, until the task's end is known.
func (p *Process) stayAttached(ctx context.Context) error {
	for tries := 0; ; tries++ {
		before := p.next
		err := p.attach(ctx)
		switch {
		case err == nil:
			return p.ended()
		case !broken(ctx, err) || errors.Is(err, errOutput):
			return p.giveUp(ctx, err)
		}
		if p.next > before {
			tries = 0
		}
		if tries >= maxTries {
			return fmt.Errorf("%w, and was broken %d times in a row: %w", ErrTruncated, tries, err)
		}
		p.mu.Lock()
		lost := p.wrote
		p.mu.Unlock()
		if lost && !p.tty {
			return p.inputLost(err)
		}
		if again := p.c.ensure(ctx); again != nil {
			return fmt.Errorf("%w, and the daemon cannot be reached: %w", ErrTruncated, again)
		}
		if lost {
			p.notice("the connection broke and was made again; what was typed at that moment may be lost")
		} else {
			p.notice("the connection broke and was made again; nothing is lost")
		}
	}
}

func (p *Process) ended() error {
	if p.noFollow {
		if s := p.task.GetState(); s != api.TaskState_TASK_STATE_EXITED && s != api.TaskState_TASK_STATE_INTERRUPTED {
			return nil
		}
	}
	return ending(p.task)
}

func (p *Process) giveUp(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrInputLost) {
		return cause
	} else if cause != nil {
		return fmt.Errorf("%w: %w", ErrTruncated, cause)
	}
	if errors.Is(err, errOutput) {
		return err
	}
	return wrap("attach to task "+p.ID+" in guest "+p.Guest, err)
}

// errOutput marks a failure of the caller's own writer.
var errOutput = errors.New("the task's output cannot be written")

// attach carries one stream; nil means that the task's end was received.
func (p *Process) attach(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	st := &attachStream{BidiStreamForClient: p.c.tasks.Attach(ctx)}
	defer abortWith(ctx, st.BidiStreamForClient)()
	defer func() {
		p.setStream(nil)
		cancel()
	}()
	open := &api.AttachOpen{Guest: p.Guest, Task: p.ID, Offset: p.next, NoFollow: p.noFollow, Input: p.own}
	if err := st.send(&api.AttachRequest{Kind: &api.AttachRequest_Open{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	p.setStream(st)
	conn, err := st.Conn()
	if err != nil {
		return err
	}
	for m := new(api.Piece); ; {
		err := conn.Receive(m)
		if errors.Is(err, io.EOF) {
			if p.noFollow {
				return nil
			}
			return errors.New("the stream ended without the task's end")
		}
		if err != nil {
			return err
		}
		switch k := m.Message().Kind.(type) {
		case *api.AttachResponse_Stdout:
			_, err = p.stdout.Write(k.Stdout)
		case *api.AttachResponse_Stderr:
			_, err = p.stderr.Write(k.Stderr)
		case *api.AttachResponse_Notice:
			p.notice(k.Notice)
		case *api.AttachResponse_Dropped:
			p.notice(fmt.Sprintf("%d bytes of output are gone: the spool was full", k.Dropped))
		case *api.AttachResponse_Task:
			p.task = k.Task
		case *api.AttachResponse_End:
			if k.End == nil {
				return errors.New("the task's end is empty")
			}
			p.task = k.End
			p.acknowledge(st, cancel)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errOutput, err)
		}
		if m.Next > p.next {
			p.next = m.Next
		}
	}
}

// abortWith makes the end of ctx end st, and returns what waits for that. The
// HTTP/2 transport looks at a request's context only while it writes, and an
// idle stream writes nothing. A reset must come before the end of our side: a
// clean end says that the result has arrived.
func abortWith(ctx context.Context, st *connect.BidiStreamForClient[api.AttachRequest, api.AttachResponse]) (wait func()) {
	done := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(done)
		st.CloseResponse()
		st.CloseRequest()
	})
	return func() { <-done }
}

func (p *Process) setStream(st *attachStream) {
	p.mu.Lock()
	p.stream = st
	p.cond.Broadcast()
	p.mu.Unlock()
}

// currentLocked waits for a stream; nil when there will be none.
func (p *Process) currentLocked() *attachStream {
	for p.stream == nil && !p.over {
		p.cond.Wait()
	}
	if p.over {
		return nil
	}
	return p.stream
}

// sendControl sends what Signal and Resize queued. What a broken stream did
// not take waits for the next one.
func (p *Process) sendControl() {
	for {
		p.mu.Lock()
		for len(p.control) == 0 && !p.over {
			p.cond.Wait()
		}
		st := p.currentLocked()
		if st == nil {
			p.mu.Unlock()
			return
		}
		m := p.control[0]
		p.mu.Unlock()

		err := st.send(m)

		p.mu.Lock()
		if err == nil {
			p.control = p.control[1:]
		} else if p.stream == st {
			p.stream = nil // the owner's Receive sees why, and attaches again
		}
		p.mu.Unlock()
	}
}

// acknowledge tells the guest's keeper, by ending our side, that the result has
// arrived: a guest of one task may go then. A bystander has nothing to say.
func (p *Process) acknowledge(st *attachStream, cancel context.CancelFunc) {
	if !p.own {
		return
	}
	defer time.AfterFunc(ackTimeout, cancel).Stop()
	st.sendMu.Lock()
	st.CloseRequest()
	st.sendMu.Unlock()
	for {
		if _, err := st.Receive(); err != nil {
			return
		}
	}
}
