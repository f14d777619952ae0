package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// ErrTruncated means that a task's stream ended without its Exit. That is
// never a success.
var ErrTruncated = errors.New("the task's stream ended before its exit was said")

// Exit statuses that are ours, as a shell would show them.
const (
	StatusTimeout = 124
	StatusOurs    = 125
)

// Exec runs one task and returns how it ended. One task goes like this:
//
//  1. one connection is dialled to the agent: the call's life is its life
//  2. Call{Exec} goes down
//  3. Started comes up, or Failed, which is an ending of its own
//  4. output comes up into the spool, whose fullness holds up the guest;
//     input, signals and sizes go down as they come, stdin within its window
//  5. Exit comes up; a stream that ends without it is an interruption
func (g *Guest) Exec(ctx context.Context, id string, spec *api.TaskSpec, out *spool, in *input) *api.Ending {
	g.tasks.Add(1)
	defer g.tasks.Done()
	g.beat.begin()
	defer g.beat.end()
	if spec.TimeoutNanos > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(spec.TimeoutNanos), errTimeout)
		defer cancel()
	}
	e, err := g.exec(ctx, id, spec, out, in)
	switch {
	case err == nil:
		return e
	case errors.Is(context.Cause(ctx), errTimeout):
		return &api.Ending{Status: StatusTimeout, TimedOut: true, Cause: fmt.Sprintf("the task was ended after its time limit of %v", time.Duration(spec.TimeoutNanos))}
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, wire.ErrFrame) || errors.As(err, new(*violation)):
		g.broke(err)
		<-g.gone
		err = errors.New(g.Cause())
	default:
		// Connections break a moment before the machine is known to be gone.
		select {
		case <-g.gone:
			if c := g.Cause(); c != "" {
				err = errors.New(c)
			} else {
				err = errors.New("the guest was stopped")
			}
		case <-time.After(2 * time.Second):
		}
	}
	return &api.Ending{Status: StatusOurs, Cause: wire.Text(err.Error(), 4*wire.MaxText)}
}

var errTimeout = errors.New("the task's time is over")

// violation is a frame that the wire's rules do not allow here.
type violation struct{ what string }

func (v *violation) Error() string { return v.what }

var errUnstarted = &violation{"output came before the task started"}

// exec returns an error for everything but a said ending.
func (g *Guest) exec(ctx context.Context, id string, spec *api.TaskSpec, out *spool, in *input) (*api.Ending, error) {
	asked := time.Now()
	g.clock.check()
	conn, err := g.call(ctx, &wire.Call{Kind: &wire.Call_Exec{Exec: &wire.Exec{
		Argv: spec.Argv, Env: spec.Env, Cwd: spec.Workdir, User: spec.User,
		Tty: spec.Tty, Rows: spec.Rows, Cols: spec.Cols, Stdin: spec.Stdin, Id: id,
		Limits: &wire.Limits{
			MemoryBytes: spec.GetLimits().GetMemoryBytes(), Pids: spec.GetLimits().GetPids(), CpuMillis: spec.GetLimits().GetCpuMillis(),
			OpenFiles: spec.GetLimits().GetOpenFiles(), FileBytes: spec.GetLimits().GetFileBytes(),
		},
	}}})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// A reader that does not read holds up the guest, but not its end.
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-g.gone:
			cancel(ErrTruncated)
		case <-wctx.Done():
		}
	}()
	pumped := make(chan struct{})
	go func() { defer close(pumped); in.pump(conn) }()
	defer func() { in.end(); conn.Close(); <-pumped }()

	r := wire.NewReader(conn)
	f := new(wire.Output)
	for started := false; ; {
		p, isErr, err := r.ReadOutput(f)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				err = ErrTruncated
			}
			return nil, err
		}
		if p != nil {
			stream := byte(streamOut)
			if isErr {
				stream = streamErr
			}
			if !started {
				err = errUnstarted
			} else {
				err = out.write(wctx, stream, p)
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		switch k := f.Kind.(type) {
		case *wire.Output_Failed:
			if started {
				return nil, &violation{"a started task cannot fail to start"}
			}
			code := k.Failed.Code
			if code != 126 && code != 127 {
				code = StatusOurs
			}
			return &api.Ending{Status: code, Cause: wire.Text(k.Failed.Message, wire.MaxText)}, nil
		case *wire.Output_Started:
			if started {
				return nil, &violation{"a task started twice"}
			}
			started = true
			g.trace.task("command begins in the guest", asked)
			continue
		}
		if !started {
			return nil, errUnstarted
		}
		switch k := f.Kind.(type) {
		case *wire.Output_StdinTaken:
			if !in.taken(k.StdinTaken) {
				err = &violation{"more stdin was taken than was sent"}
			}
		case *wire.Output_Exit:
			return ending(k.Exit)
		default:
			err = &violation{"an empty frame"}
		}
		if err != nil {
			return nil, err
		}
	}
}

func ending(x *wire.Exit) (*api.Ending, error) {
	if x.Code < 0 || x.Code > 255 || x.Signal < 0 || x.Signal > 64 || x.Code != 0 && x.Signal != 0 {
		return nil, &violation{fmt.Sprintf("an impossible exit: code %d, signal %d", x.Code, x.Signal)}
	}
	e := &api.Ending{Status: x.Code, Signal: x.Signal, Oom: x.Oom}
	if x.Signal != 0 {
		e.Status = 128 + x.Signal
	}
	return e, nil
}

// call dials the agent and sends one Call.
func (g *Guest) call(ctx context.Context, c *wire.Call) (net.Conn, error) {
	dctx, cancel := context.WithTimeoutCause(ctx, writeTimeout, errors.New("the guest's agent does not take calls"))
	defer cancel()
	conn, err := g.vm.Dial(dctx, wire.PortAgent)
	if err != nil {
		if ctx.Err() == nil && dctx.Err() != nil {
			err = context.Cause(dctx)
		}
		return nil, fmt.Errorf("call the guest's agent: %w", err)
	}
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := wire.Write(conn, c); err != nil {
		conn.Close()
		return nil, fmt.Errorf("call the guest's agent: %w", err)
	}
	return conn, nil
}
