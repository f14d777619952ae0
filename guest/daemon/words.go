package daemon

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// around stands around every method of the daemon: each error that leaves has a
// word of api.Codes, each call ends with its deadline, and what may have changed the images is looked into.
type around struct{ d *Daemon }

// WrapUnary implements connect.Interceptor.
func (a around) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		out, err := a.d.byDeadline(ctx, r, next)
		a.after(r.Spec().Procedure)
		return out, worded(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (a around) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (a around) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		err := next(ctx, c)
		a.after(c.Spec().Procedure)
		return worded(err)
	}
}

// after has the images looked at when a method may have changed them, whether it
// failed or not. A start may bring one, too.
func (a around) after(procedure string) {
	a.d.rest.moved()
	switch {
	case strings.HasSuffix(procedure, "Service/List"):
	case strings.HasPrefix(procedure, "/carrel.v1.ImageService/"), procedure == "/carrel.v1.GuestService/Start", procedure == "/carrel.v1.DiskService/Prune":
		a.d.source.imagesChanged()
	}
}

// wordOf is the word that an error has, or empty.
func wordOf(err error) string {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return ""
	}
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if e, ok := m.(*api.ErrorDetail); ok {
				return e.Code
			}
		}
	}
	return ""
}

// worded gives an error that has no word of ours the one for what it is: a call
// that was given up, a message that was too large, a fault in our own code.
func worded(err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if d.Type() == "carrel.v1.ErrorDetail" {
				return err
			}
		}
	}
	code, cause := connect.CodeOf(err), err.Error()
	if ce != nil {
		cause = ce.Message()
	}
	word := "internal"
	switch {
	case errors.Is(err, context.Canceled) || code == connect.CodeCanceled:
		code, word = connect.CodeCanceled, "canceled"
	case errors.Is(err, context.DeadlineExceeded) || code == connect.CodeDeadlineExceeded:
		code, word = connect.CodeDeadlineExceeded, "timeout"
	case code == connect.CodeUnavailable:
		word = "unavailable"
	case code == connect.CodeResourceExhausted:
		word = "too_large"
	case code == connect.CodeInvalidArgument:
		word = "bad_request"
	case code == connect.CodeUnimplemented:
		word = "unimplemented"
	}
	return api.NewError(code, word, cause, "")
}
