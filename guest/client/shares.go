package client

import (
	"context"
	"crypto/rand"
	"fmt"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// Shares lists a guest's shared folders, each with how it is carried. Of a guest
// that does not run it is what its next start will share.
func (c *Client) Shares(ctx context.Context, guest string) ([]*api.SharedFolder, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	res, err := c.shares.List(ctx, connect.NewRequest(&api.ListSharesRequest{Guest: guest}))
	if err != nil {
		return nil, wrap("list the shares of guest "+guest, err)
	}
	return res.Msg.Shares, nil
}

// AddShare shares one more folder with a guest, and returns when a guest that
// runs sees it. It is kept over restarts. To add the same share twice is to add
// it once.
func (c *Client) AddShare(ctx context.Context, guest string, s *api.Share) (*api.SharedFolder, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	req := &api.AddShareRequest{Guest: guest, Share: s, IdempotencyKey: rand.Text()}
	res, err := twice(ctx, c, func() (*connect.Response[api.AddShareResponse], error) {
		return c.shares.Add(ctx, connect.NewRequest(req))
	})
	if err != nil {
		return nil, wrap(fmt.Sprintf("share %.200q with guest %s", s.GetPath(), guest), err)
	}
	return res.Msg.GetShare(), nil
}

// RemoveShare takes a share from a guest; path is the folder on the host, or
// where the guest sees it. When it returns nothing in the guest reaches the
// folder. A share whose changes wait to be reviewed is only taken
// by force: nobody can look at them or apply them then.
func (c *Client) RemoveShare(ctx context.Context, guest, path string, force bool) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	_, err := c.shares.Remove(ctx, connect.NewRequest(&api.RemoveShareRequest{Guest: guest, Path: path, Force: force}))
	return wrap(fmt.Sprintf("take %.200q from guest %s", path, guest), err)
}

// RefreshShares shows a guest that runs what the host has changed under a review
// since, except where the guest has changed the same file. An empty path stands
// for all of its shares.
func (c *Client) RefreshShares(ctx context.Context, guest, path string) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	_, err := c.shares.Refresh(ctx, connect.NewRequest(&api.RefreshShareRequest{Guest: guest, Path: path}))
	return wrap("refresh the shares of guest "+guest, err)
}

// ExplainShare says what the rules of a share say of a path of the host, which
// need not exist, and why: of a guest's share, or, without a guest, of s.
func (c *Client) ExplainShare(ctx context.Context, guest string, s *api.Share, path string) (*api.ExplainShareResponse, error) {
	if guest != "" {
		if err := CheckName("guest", guest); err != nil {
			return nil, err
		}
	}
	res, err := c.shares.Explain(ctx, connect.NewRequest(&api.ExplainShareRequest{Guest: guest, Share: s, Path: path}))
	if err != nil {
		return nil, wrap(fmt.Sprintf("explain %.200q", path), err)
	}
	return res.Msg, nil
}
