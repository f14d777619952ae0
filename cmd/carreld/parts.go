//go:build (linux || darwin) && !carreltest

package main

import (
	"context"
	"fmt"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/images"
)

// partsOf verifies an image and names its parts; host are those of the host's own
// system. An image from a registry has a root only, and starts with the default
// image's kernel and initrd.
func partsOf(s *images.Store, host policy.Parts) func(context.Context, string) (policy.Parts, func(), error) {
	return func(ctx context.Context, name string) (policy.Parts, func(), error) {
		if name == hostImage {
			return host, func() {}, nil
		}
		id, _, err := s.Find(name)
		if err != nil && hypervisor.ValidName(name) {
			id = name // it is said how to build it
		} else if err != nil {
			return policy.Parts{}, nil, err
		}
		img, release, err := s.Use(ctx, id)
		if err != nil {
			return policy.Parts{}, nil, err
		}
		if err := s.Fits(img); err != nil {
			release()
			return policy.Parts{}, nil, err
		}
		p := policy.Parts{Kernel: img.Kernel, Initrd: img.Initrd, Root: img.Root}
		o := img.Manifest.Origin
		if o == nil {
			return p, release, nil
		}
		base, releaseBase, err := s.UseKernel(ctx, policy.DefaultImage)
		if err == nil {
			if err = s.Fits(base); err != nil {
				releaseBase()
			}
		}
		if err != nil {
			release()
			return policy.Parts{}, nil, fmt.Errorf("the kernel that image %s starts with: %w", name, err)
		}
		p.Kernel, p.Initrd, p.Foreign, p.Hold = base.Kernel, base.Initrd, true, s.Lock(id)
		p.Image = &policy.ImageConfig{
			Entrypoint: o.Config.Entrypoint, Cmd: o.Config.Cmd, Env: o.Config.Env, User: o.Config.User, WorkingDir: o.Config.WorkingDir,
		}
		return p, func() { release(); releaseBase() }, nil
	}
}
