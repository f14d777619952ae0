package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/carrel-vm/carrel/guest/api"
)

// Cmd is a command in a guest, with the fields and methods of exec.Cmd that make
// sense there. A Cmd is used once.
type Cmd struct {
	Task
	// Process is the task once it was started.
	Process *Process

	c      *Client
	ctx    context.Context // as exec.CommandContext keeps it: its end kills the task
	ends   []io.Closer     // pipes that end with the task
	ended  chan struct{}   // closed when they have
	unkill func() bool
}

// Command prepares a command in a guest. If ctx ends before the command does,
// the command is killed, and Wait returns when it is gone.
func (c *Client) Command(ctx context.Context, guest string, args ...string) *Cmd {
	return &Cmd{Task: Task{Guest: guest, Args: args}, c: c, ctx: ctx}
}

// Run starts the command and waits for its end.
func (m *Cmd) Run() error {
	if err := m.Start(); err != nil {
		return err
	}
	return m.Wait()
}

// Start starts the command.
func (m *Cmd) Start() error {
	if m.Process != nil {
		return errors.New("the command was started already")
	}
	if err := m.ctx.Err(); err != nil {
		m.close()
		return err
	}
	// What is received goes on when ctx ends, so that the end is known.
	p, err := m.c.StartTask(context.WithoutCancel(m.ctx), m.Task)
	if err != nil {
		m.close()
		return err
	}
	m.Process, m.ended = p, make(chan struct{})
	go func() { // Wait joins it
		defer close(m.ended)
		<-p.Done()
		m.close()
	}()
	m.unkill = context.AfterFunc(m.ctx, func() { p.Signal(SIGKILL) })
	return nil
}

// Wait waits for the command's end: nil for status 0, an *ExitError for any other
// end, the error of ctx if that ended it.
func (m *Cmd) Wait() error {
	if m.Process == nil {
		return errors.New("the command was not started")
	}
	err := m.Process.Wait()
	killed := m.unkill != nil && !m.unkill()
	m.unkill = nil
	<-m.ended
	if killed && err != nil {
		return errors.Join(m.ctx.Err(), err)
	}
	return err
}

func (m *Cmd) close() {
	for _, c := range m.ends {
		c.Close()
	}
	m.ends = nil
}

// Output runs the command and returns what it wrote to its standard output. That
// may be as much as the guest likes: for what is not trusted, set Stdout to
// something that is bounded.
func (m *Cmd) Output() ([]byte, error) {
	var b bytes.Buffer
	m.Stdout = &b
	err := m.Run()
	return b.Bytes(), err
}

// CombinedOutput runs the command and returns what it wrote to its standard
// output and standard error.
func (m *Cmd) CombinedOutput() ([]byte, error) {
	var b bytes.Buffer
	m.Stdout, m.Stderr = &b, &b // one goroutine writes both
	err := m.Run()
	return b.Bytes(), err
}

// StdinPipe returns a pipe to the command's standard input. Closing it is the
// input's end.
func (m *Cmd) StdinPipe() (io.WriteCloser, error) {
	r, w, err := m.pipe(m.Stdin != nil, "Stdin")
	if err != nil {
		return nil, err
	}
	m.Stdin = r
	return w, nil
}

// StdoutPipe returns a pipe from the command's standard output. What is not read
// holds the command up. Read to its end before Wait.
func (m *Cmd) StdoutPipe() (io.ReadCloser, error) {
	r, w, err := m.pipe(m.Stdout != nil, "Stdout")
	if err != nil {
		return nil, err
	}
	m.Stdout = w
	return r, nil
}

// StderrPipe is StdoutPipe for the standard error. Both come on one stream: read
// them side by side.
func (m *Cmd) StderrPipe() (io.ReadCloser, error) {
	r, w, err := m.pipe(m.Stderr != nil, "Stderr")
	if err != nil {
		return nil, err
	}
	m.Stderr = w
	return r, nil
}

func (m *Cmd) pipe(set bool, what string) (*io.PipeReader, *io.PipeWriter, error) {
	switch {
	case m.Process != nil:
		return nil, nil, errors.New("the command was started already")
	case set:
		return nil, nil, errors.New(what + " is set already")
	}
	r, w := io.Pipe()
	if what == "Stdin" {
		m.ends = append(m.ends, r) // a writer is not to wait for a task that is over
	} else {
		m.ends = append(m.ends, w)
	}
	return r, w, nil
}

// Session is a guest that lives as long as its holder: when Close is called, or
// a while after the holder is gone, however it went, the guest ends. It is then
// removed, or, if changes of it wait for review, kept under its name until they
// are applied or discarded.
type Session struct {
	// Guest is the guest as it was started.
	Guest *api.Guest

	lease *Process
	stdin *io.PipeWriter
	once  sync.Once
	err   error
}

// leaseCommand waits for the end of its input, and does nothing else.
var leaseCommand = []string{"/bin/sh", "-c", "read -r _; exit 0"}

// StartSession starts a new guest for a session. spec.Ephemeral is set. The image
// must have /bin/sh.
func (c *Client) StartSession(ctx context.Context, spec *api.GuestSpec, o GuestOptions) (*Session, error) {
	o.OnlyNew = true
	spec.Ephemeral = true
	g, err := c.StartGuest(ctx, spec, o)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	p, err := c.StartTask(context.WithoutCancel(ctx), Task{Guest: g.Name, Args: leaseCommand, Dir: "/", Stdin: r})
	if err != nil {
		return nil, errors.Join(err, c.RemoveGuest(context.WithoutCancel(ctx), g.Name, true))
	}
	return &Session{Guest: g, lease: p, stdin: w}, nil
}

// Done is closed when the session's guest has ended, whoever ended it.
func (s *Session) Done() <-chan struct{} { return s.lease.Done() }

// Close ends the session and returns when its guest is about to go: tasks that
// still run in it are ended. It may be called twice.
func (s *Session) Close() error {
	s.once.Do(func() {
		s.stdin.Close()
		err := s.lease.Wait()
		var exit *ExitError
		if errors.As(err, &exit) {
			err = nil // it was ended otherwise, which is as good
		}
		s.err = err
	})
	return s.err
}
