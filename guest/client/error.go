package client

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// Error is what went wrong, why, and what would mend it.
type Error struct {
	// Code is a stable word: "not_found", "name_taken", "image_missing", ...
	Code string
	// Message says what was tried, on what.
	Message string
	// Cause says why it failed. May be empty.
	Cause string
	// Cure is a sentence or a command. May be empty.
	Cure string
	// Retry is when asking again may go well; 0: nobody knows, or asking again is of
	// no use.
	Retry time.Duration

	err error
}

func (e *Error) Error() string {
	s := e.Message
	if cause := strings.TrimPrefix(e.Cause, e.Message+": "); cause != "" && !strings.Contains(s, cause) {
		s += ": " + cause // each side says what it tried, which may be the same
	}
	if e.Cure != "" {
		s += " (" + e.Cure + ")"
	}
	return s
}

// Unwrap returns the error beneath, where there is one.
func (e *Error) Unwrap() error { return e.err }

// CodeOf returns the code of err, or "".
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// ErrTruncated says that a task's stream ended without the task's end, and that
// it could not be taken up again. The task may go on.
var ErrTruncated = errors.New("the task's stream ended without its end")

// wrap turns an error of the daemon's API into an *Error; op says what was
// tried.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	e := &Error{Message: op, Cause: err.Error(), err: err}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		e.Code = "failed"
		switch {
		case errors.Is(err, context.Canceled):
			e.Code = "canceled"
		case errors.Is(err, context.DeadlineExceeded):
			e.Code = "timeout"
		}
		return e
	}
	e.Code, e.Cause = ce.Code().String(), ce.Message()
	if d := detail(ce); d != nil {
		if d.Code != "" {
			e.Code = d.Code
		}
		if d.Cause != "" {
			e.Cause = d.Cause
		}
		e.Cure, e.Retry = d.Cure, time.Duration(max(d.RetryNanos, 0))
	}
	return e
}

// detail returns what the daemon attached to an error of its own, or nil.
func detail(ce *connect.Error) *api.ErrorDetail {
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if ed, ok := m.(*api.ErrorDetail); ok {
				return ed
			}
		}
	}
	return nil
}

// ended are the daemon's words for a call that it could not bring to its end:
// they say nothing of what was asked for.
var ended = []string{"canceled", "closing", "internal", "unavailable"}

// twice makes a call that comes with an idempotency key, and once more if the way
// to the daemon broke: the second is told what the first one made.
func twice[T any](ctx context.Context, c *Client, call func() (T, error)) (T, error) {
	res, err := call()
	if err != nil && broken(ctx, err) {
		if again := c.ensure(ctx); again != nil {
			return res, errors.Join(err, again)
		}
		res, err = call()
	}
	return res, err
}

// broken says whether err means that the way to the daemon broke, rather than
// that the daemon said no.
func broken(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	var own *Error
	if errors.As(err, &own) {
		return false
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return true
	}
	if d := detail(ce); d != nil && !slices.Contains(ended, d.Code) {
		return false
	}
	switch ce.Code() {
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeInternal, connect.CodeCanceled, connect.CodeAborted, connect.CodeDataLoss:
		return true
	}
	return false
}
