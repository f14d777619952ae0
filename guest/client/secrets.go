package client

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

func (c *Client) secretService() apiconnect.SecretServiceClient {
	return apiconnect.NewSecretServiceClient(&http.Client{Transport: c.transport}, "http://carrel", connect.WithReadMaxBytes(maxMessage))
}

// SetSecret keeps a credential on the host. Without a definition it keeps the
// one that the secret has, or takes the ready-made one of the secret's name.
// The caller keeps value, and may clear it.
func (c *Client) SetSecret(ctx context.Context, name string, d *api.SecretDefinition, value []byte) (*api.Secret, error) {
	if err := CheckName("secret", name); err != nil {
		return nil, err
	}
	res, err := c.secretService().Set(ctx, connect.NewRequest(&api.SetSecretRequest{Name: name, Definition: d, Value: value}))
	if err != nil {
		return nil, wrap("keep secret "+name, err)
	}
	return res.Msg.Secret, nil
}

// Secrets lists what is known of all secrets; their values stay where they are.
func (c *Client) Secrets(ctx context.Context) ([]*api.Secret, error) {
	res, err := c.secretService().List(ctx, connect.NewRequest(&api.ListSecretsRequest{}))
	if err != nil {
		return nil, wrap("list secrets", err)
	}
	return res.Msg.Secrets, nil
}

// RemoveSecret forgets a secret; no guest's request gets it any more.
func (c *Client) RemoveSecret(ctx context.Context, name string) error {
	if err := CheckName("secret", name); err != nil {
		return err
	}
	_, err := c.secretService().Remove(ctx, connect.NewRequest(&api.RemoveSecretRequest{Name: name}))
	return wrap("remove secret "+name, err)
}
