package daemon

import (
	"errors"
	"strings"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/images"
)

// refusal turns any error of a start into the API's words.
func refusal(err error) error {
	var r *policy.Refusal
	var he *hypervisor.Error
	var ce *connect.Error
	switch {
	case errors.As(err, &ce):
		return err
	case errors.As(err, &r):
		code := connect.CodeInvalidArgument
		switch r.Code {
		case "share_refused":
			code = connect.CodePermissionDenied
		case "policy_unreadable", "policy_invalid", "secrets_unreadable", "agreements_unreadable":
			code = connect.CodeFailedPrecondition
		}
		return api.NewError(code, r.Code, r.Reason, r.Cure)
	case errors.Is(err, images.ErrNotFound):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodeFailedPrecondition, "image_missing", cause, cure)
	case errors.Is(err, images.ErrDamaged):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodeDataLoss, "image_damaged", cause, cure)
	case errors.Is(err, images.ErrArch):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodeFailedPrecondition, "image_arch", cause, cure)
	case errors.Is(err, images.ErrUntrusted):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodePermissionDenied, "image_untrusted", cause, cure)
	case errors.As(err, &he):
		return api.NewError(connect.CodeFailedPrecondition, "host", he.Op+": "+he.Err.Error(), he.Cure)
	}
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeInternal, "start_failed", cause, cure)
}

// startFailed is what a keeper says of a start that failed.
func startFailed(name, cause string) error {
	cause, cure := apart(cause)
	return api.NewError(connect.CodeFailedPrecondition, "start_failed", "guest "+name+" did not start: "+cause, cure)
}

// apart splits the cure, in the parentheses at its end, from an error's text.
func apart(text string) (cause, cure string) {
	if i := strings.LastIndex(text, " ("); i > 0 && strings.HasSuffix(text, ")") {
		return text[:i], text[i+2 : len(text)-1]
	}
	return text, ""
}
