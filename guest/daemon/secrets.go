package daemon

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/secret"
)

// secretService implements SecretService. None of its answers, errors and log
// lines holds a value.
type secretService struct{ d *Daemon }

// Set implements SecretService. The value is kept, and guests that use the
// secret have the new one, when it answers.
func (s *secretService) Set(ctx context.Context, r *connect.Request[api.SetSecretRequest]) (*connect.Response[api.SetSecretResponse], error) {
	value := r.Msg.Value
	defer clear(value)
	one, err := s.d.secrets.Set(ctx, r.Msg.Name, r.Msg.Definition, value)
	if err != nil {
		return nil, secretError("secret_refused", r.Msg.Name, err)
	}
	s.d.secretChanged(context.WithoutCancel(ctx), one.Name)
	return connect.NewResponse(&api.SetSecretResponse{Secret: one}), nil
}

// List implements SecretService.
func (s *secretService) List(context.Context, *connect.Request[api.ListSecretsRequest]) (*connect.Response[api.ListSecretsResponse], error) {
	all, err := s.d.secrets.List()
	if err != nil {
		return nil, secretError("secrets_unreadable", "", err)
	}
	return connect.NewResponse(&api.ListSecretsResponse{Secrets: all}), nil
}

// Remove implements SecretService. No request gets the secret any more when it
// answers.
func (s *secretService) Remove(ctx context.Context, r *connect.Request[api.RemoveSecretRequest]) (*connect.Response[api.RemoveSecretResponse], error) {
	if err := s.d.secrets.Remove(ctx, r.Msg.Name); err != nil {
		return nil, secretError("secret_refused", r.Msg.Name, err)
	}
	s.d.secretChanged(context.WithoutCancel(ctx), r.Msg.Name)
	return connect.NewResponse(&api.RemoveSecretResponse{}), nil
}

// secretError makes an error of the API; the caller says itself which secret it
// was about.
func secretError(word, name string, err error) error {
	cause, cure := apart(err.Error())
	for _, op := range []string{"secret ", "keep secret ", "remove secret "} {
		cause = strings.TrimPrefix(cause, op+name+": ")
	}
	code := connect.CodeInvalidArgument
	switch {
	case errors.Is(err, secret.ErrNotFound):
		code, word = connect.CodeNotFound, "not_found"
		if cure == "" {
			cure = "carrel secret ls shows those that there are"
		}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code, word = connect.CodeUnavailable, "keychain"
	case word == "secrets_unreadable":
		code = connect.CodeDataLoss
	}
	return api.NewError(code, word, cause, cure)
}
