package client

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// CheckPolicy parses a policy file's content, or a repository's request, and
// returns its rules or its mistakes.
func (c *Client) CheckPolicy(ctx context.Context, content []byte, name string, request bool) (*api.CheckPolicyResponse, error) {
	res, err := c.policy.Check(ctx, connect.NewRequest(&api.CheckPolicyRequest{Content: content, Name: name, Request: request}))
	if err != nil {
		return nil, wrap(fmt.Sprintf("check the policy %.200q", name), err)
	}
	return res.Msg, nil
}

// PolicyRequest looks at a folder's .carrel.yaml: what it asks for, and whether
// the user has agreed to exactly this content.
func (c *Client) PolicyRequest(ctx context.Context, folder string) (*api.RequestPolicyResponse, error) {
	res, err := c.policy.Request(ctx, connect.NewRequest(&api.RequestPolicyRequest{Folder: folder}))
	if err != nil {
		return nil, wrap(fmt.Sprintf("look at what %.200q asks for", folder), err)
	}
	return res.Msg, nil
}

// AgreePolicy records the user's yes to the content with this hash.
func (c *Client) AgreePolicy(ctx context.Context, folder, hash string) error {
	_, err := c.policy.Agree(ctx, connect.NewRequest(&api.AgreePolicyRequest{Folder: folder, Hash: hash}))
	return wrap(fmt.Sprintf("agree to what %.200q asks for", folder), err)
}

// ImportPolicy turns another program's settings into a policy file; from is
// "srt". Nothing is written.
func (c *Client) ImportPolicy(ctx context.Context, from string, content []byte) (*api.ImportPolicyResponse, error) {
	res, err := c.policy.Import(ctx, connect.NewRequest(&api.ImportPolicyRequest{From: from, Content: content}))
	if err != nil {
		return nil, wrap("import the settings of "+from, err)
	}
	return res.Msg, nil
}
