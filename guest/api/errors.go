package api

import (
	"errors"

	"connectrpc.com/connect"
)

// NewError makes an error of the API: a Connect code for machines of any kind,
// and a detail with a stable word, the cause and what would mend it.
func NewError(code connect.Code, word, cause, cure string) *connect.Error {
	e := connect.NewError(code, errors.New(cause))
	if d, err := connect.NewErrorDetail(&ErrorDetail{Code: word, Cause: cause, Cure: cure}); err == nil {
		e.AddDetail(d)
	}
	return e
}
