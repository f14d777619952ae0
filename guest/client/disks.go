package client

import (
	"context"
	"crypto/rand"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// DiskUsage says what guests really take on the host's disk, and how much of
// that is free. An empty guest stands for all.
func (c *Client) DiskUsage(ctx context.Context, guest string) (*api.DiskUsageResponse, error) {
	if guest != "" {
		if err := CheckName("guest", guest); err != nil {
			return nil, err
		}
	}
	res, err := c.disks.Usage(ctx, connect.NewRequest(&api.DiskUsageRequest{Guest: guest}))
	if err != nil {
		return nil, wrap("measure what guests take", err)
	}
	return res.Msg, nil
}

// PruneOptions say what Prune may remove.
type PruneOptions struct {
	// DryRun says what would go, and removes nothing.
	DryRun bool
	// Volumes takes also those that no guest names.
	Volumes bool
	// Only, if not empty, is what was shown to a person: nothing else goes.
	Only []*api.PruneItem
}

// Prune removes what nobody needs. Each item says why it was to go, and, if it
// is still there, why.
func (c *Client) Prune(ctx context.Context, o PruneOptions) (*api.PruneResponse, error) {
	res, err := c.disks.Prune(ctx, connect.NewRequest(&api.PruneRequest{DryRun: o.DryRun, Volumes: o.Volumes, Only: o.Only}))
	if err != nil {
		return nil, wrap("prune", err)
	}
	return res.Msg, nil
}

// CreateVolume makes an empty volume of mib MiB at most; 0: the default, 8 GiB.
func (c *Client) CreateVolume(ctx context.Context, name string, mib uint32) (*api.Volume, error) {
	if err := CheckName("volume", name); err != nil {
		return nil, err
	}
	req := &api.CreateVolumeRequest{Name: name, SizeMib: mib, IdempotencyKey: rand.Text()}
	res, err := twice(ctx, c, func() (*connect.Response[api.CreateVolumeResponse], error) {
		return c.disks.CreateVolume(ctx, connect.NewRequest(req))
	})
	if err != nil {
		return nil, wrap("make volume "+name, err)
	}
	return res.Msg.Volume, nil
}

// Volumes lists this user's volumes.
func (c *Client) Volumes(ctx context.Context) ([]*api.Volume, error) {
	res, err := c.disks.ListVolumes(ctx, connect.NewRequest(&api.ListVolumesRequest{}))
	if err != nil {
		return nil, wrap("list volumes", err)
	}
	return res.Msg.Volumes, nil
}

// RemoveVolume removes a volume and all that is in it. One that a stopped guest
// names needs force; one that a running guest has stays.
func (c *Client) RemoveVolume(ctx context.Context, name string, force bool) error {
	if err := CheckName("volume", name); err != nil {
		return err
	}
	_, err := c.disks.RemoveVolume(ctx, connect.NewRequest(&api.RemoveVolumeRequest{Name: name, Force: force}))
	return wrap("remove volume "+name, err)
}
