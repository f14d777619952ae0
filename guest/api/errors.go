package api

import (
	"errors"
	"time"

	"connectrpc.com/connect"
)

// NewError makes an error of the API: a Connect code for machines of any kind,
// and a detail with a stable word, the cause and what would mend it.
func NewError(code connect.Code, word, cause, cure string) *connect.Error {
	return newError(code, &ErrorDetail{Code: word, Cause: cause, Cure: cure})
}

// NewRetryError is NewError for what may go well if it is asked for again after a
// while.
func NewRetryError(code connect.Code, word, cause, cure string, after time.Duration) *connect.Error {
	return newError(code, &ErrorDetail{Code: word, Cause: cause, Cure: cure, RetryNanos: int64(after)})
}

func newError(code connect.Code, detail *ErrorDetail) *connect.Error {
	e := connect.NewError(code, errors.New(detail.Cause))
	if d, err := connect.NewErrorDetail(detail); err == nil {
		e.AddDetail(d)
	}
	return e
}
