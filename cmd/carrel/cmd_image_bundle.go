package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// signFlags are those of push and export.
type signFlags struct {
	key     string
	version uint64
	expires time.Duration
	as      string
}

func (s *signFlags) add(f *pflag.FlagSet) {
	f.StringVar(&s.key, "key", "", "the private key to sign with, a `file` (see carrel image key new)")
	f.Uint64Var(&s.version, "version", 0, "the bundle's version, a number that only grows (default: the seconds since 1970)")
	f.DurationVar(&s.expires, "expires", 0, "how long the signature is taken for new images, such as 2160h (default: for ever)")
	f.StringVar(&s.as, "as", "", "what the bundle, and so the image that it brings, is called (default: as the first IMAGE)")
}

func (s *signFlags) options() (client.SignOptions, error) {
	if s.key == "" {
		return client.SignOptions{}, usageError{errors.New("say what to sign with: --key FILE (carrel image key new FILE makes one)")}
	}
	if s.expires < 0 {
		return client.SignOptions{}, usageError{errors.New("--expires is a time to come")}
	}
	if s.as != "" {
		if err := client.CheckName("image", s.as); err != nil {
			return client.SignOptions{}, usageError{err}
		}
	}
	path, err := filepath.Abs(s.key)
	return client.SignOptions{Key: path, Version: s.version, Expires: s.expires, As: s.as}, err
}

func (a *app) imagePushCommand() *cobra.Command {
	return a.publishCommand(&cobra.Command{
		Use:   "push IMAGE... REFERENCE",
		Short: "Sign built images and bring them to a registry, as a bundle",
		Long: `Sign built images, one for each architecture, and bring them to a registry as one
bundle: kernel, initrd and root. Whoever trusts the key pulls it, on a host that
builds no images. The bundle is called as the first image.`,
		Example: "  carrel image push default ghcr.io/owner/default:1 --key release.key\n  carrel image push default default-arm64 ghcr.io/owner/default:1 --key release.key",
	}, func(to string) (string, error) { return to, imageNames([]string{to}) }, (*client.Client).PushImages)
}

func (a *app) imageExportCommand() *cobra.Command {
	return a.publishCommand(&cobra.Command{
		Use:     "export IMAGE... FILE",
		Short:   "Sign built images and write them to a file, as a bundle",
		Long:    "The same as push, into a file: an OCI layout in a tar, which carrel image import\nreads, and which other tools can bring to a registry.",
		Example: "  carrel image export default default.carrel.tar --key release.key\n  carrel image export default-arm64 mac.carrel.tar --as default --key release.key",
	}, filepath.Abs, (*client.Client).ExportImages)
}

// publishCommand is push or export, whose last argument is where to.
func (a *app) publishCommand(cmd *cobra.Command, target func(string) (string, error), do publishFunc) *cobra.Command {
	var sign signFlags
	cmd.Args = needs(arguments(2, many))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		last := len(args) - 1
		to, err := target(args[last])
		if err != nil {
			return err
		}
		return a.publish(cmd.Context(), args[:last], &sign, to, do)
	}
	sign.add(cmd.Flags())
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

// publishFunc signs images and brings them somewhere.
type publishFunc func(c *client.Client, ctx context.Context, names []string, to string, o client.SignOptions, on func(*api.Progress)) (*api.PublishedImage, error)

func (a *app) publish(ctx context.Context, names []string, sign *signFlags, to string, do publishFunc) error {
	for _, n := range names {
		if err := client.CheckName("image", n); err != nil {
			return usageError{err}
		}
	}
	o, err := sign.options()
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	p := a.progress()
	out, err := do(c, ctx, names, to, o, p.update)
	p.done()
	if err != nil {
		return err
	}
	a.note(fmt.Sprintf("%s, version %d for %s, is at %s: %s", out.Name, out.Version, strings.Join(out.Archs, ", "), to, humanize.IBytes(size(out.Size))))
	_, err = fmt.Fprintln(a.out, safe(out.Digest))
	return err
}

// tellBundle says what a bundle has brought, and how to go back.
func (a *app) tellBundle(img *api.Image) error {
	b := img.Bundle
	a.note(fmt.Sprintf("image %s is here: version %d, signed by key %s, %s on disk", img.Name, b.Version, b.Key, humanize.IBytes(imageSize(img))))
	if b.HasPrevious {
		before := "one that was built here"
		if b.PreviousVersion > 0 {
			before = fmt.Sprintf("version %d", b.PreviousVersion)
		}
		a.note(fmt.Sprintf("the one before it, %s, is kept: `carrel image restore %s` brings it back", before, img.Name))
	}
	_, err := fmt.Fprintln(a.out, safe(img.Name+"@"+b.Digest))
	return err
}

func (a *app) imageRestoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "restore IMAGE",
		Short:   "Bring back the image that a bundle has replaced",
		Long:    "Let an image and the one before it change places. What is kept is the image that\nthe last bundle has replaced; guests that run go on with theirs.",
		Example: "  carrel image restore default",
		Args:    needs(arguments(1, 1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := client.CheckName("image", args[0]); err != nil {
				return usageError{err}
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			img, err := c.RestoreImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if img.Bundle != nil {
				return a.tellBundle(img)
			}
			a.note("image " + img.Name + " is the one again that was built here")
			return nil
		},
	}
}
