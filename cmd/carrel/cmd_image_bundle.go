package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
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
}

func (s *signFlags) add(f *pflag.FlagSet) {
	f.StringVar(&s.key, "key", "", "the private key to sign with, a `file` (see carrel image key new)")
	f.Uint64Var(&s.version, "version", 0, "the bundle's version, a number that only grows (default: the seconds since 1970)")
	f.DurationVar(&s.expires, "expires", 0, "how long the signature is taken for new images, such as 2160h (default: for ever)")
}

func (s *signFlags) options() (client.SignOptions, error) {
	if s.key == "" {
		return client.SignOptions{}, usageError{errors.New("say what to sign with: --key FILE (carrel image key new FILE makes one)")}
	}
	if s.expires < 0 {
		return client.SignOptions{}, usageError{errors.New("--expires is a time to come")}
	}
	path, err := filepath.Abs(s.key)
	return client.SignOptions{Key: path, Version: s.version, Expires: s.expires}, err
}

func (a *app) imagePushCommand() *cobra.Command {
	var sign signFlags
	cmd := &cobra.Command{
		Use:   "push IMAGE... REFERENCE",
		Short: "Sign built images and bring them to a registry, as a bundle",
		Long: `Sign built images, one for each architecture, and bring them to a registry as one
bundle: kernel, initrd and root. Whoever trusts the key pulls it, on a host that
builds no images. The bundle is called as the first image.`,
		Example: "  carrel image push default ghcr.io/owner/default:1 --key release.key",
		Args:    needs(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, to := args[:len(args)-1], args[len(args)-1]
			if err := imageNames([]string{to}); err != nil {
				return err
			}
			return a.publish(cmd.Context(), names, &sign, to, func(ctx context.Context, c *client.Client, o client.SignOptions, on func(*api.Progress)) (*api.PublishedImage, error) {
				return c.PushImages(ctx, names, to, o, on)
			})
		},
	}
	sign.add(cmd.Flags())
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func (a *app) imageExportCommand() *cobra.Command {
	var sign signFlags
	cmd := &cobra.Command{
		Use:     "export IMAGE... FILE",
		Short:   "Sign built images and write them to a file, as a bundle",
		Long:    "The same as push, into a file: an OCI layout in a tar, which carrel image import\nreads, and which other tools can bring to a registry.",
		Example: "  carrel image export default default.carrel.tar --key release.key",
		Args:    needs(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := args[:len(args)-1]
			to, err := filepath.Abs(args[len(args)-1])
			if err != nil {
				return err
			}
			return a.publish(cmd.Context(), names, &sign, to, func(ctx context.Context, c *client.Client, o client.SignOptions, on func(*api.Progress)) (*api.PublishedImage, error) {
				return c.ExportImages(ctx, names, to, o, on)
			})
		},
	}
	sign.add(cmd.Flags())
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func (a *app) publish(ctx context.Context, names []string, sign *signFlags, to string, do func(context.Context, *client.Client, client.SignOptions, func(*api.Progress)) (*api.PublishedImage, error)) error {
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
	out, err := do(ctx, c, o, p.update)
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
		Args:    needs(cobra.ExactArgs(1)),
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

func (a *app) imageTrustCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "trust KEYFILE",
		Short:   "Take bundles that a key has signed",
		Long:    "Take from now on bundles that a key has signed. The file is the public key, in PEM,\nas carrel image key new, openssl and cosign write it. Whoever has the private key\ndecides what your guests start from.",
		Example: "  carrel image trust release.key.pub --name releases",
		Args:    needs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			k, err := c.TrustKey(cmd.Context(), path, name)
			if err != nil {
				return err
			}
			a.note(fmt.Sprintf("key %s (%s) is trusted: bundles that it has signed are taken; `carrel image key rm %s` ends that", k.Name, k.Id, k.Name))
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what to call the `key` (default: as its file)")
	return cmd
}

func (a *app) imageKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make keys to sign bundles with, and list and forget trusted ones",
		Args:  needs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with keys: new, ls or rm")}
		},
	}
	create := &cobra.Command{
		Use:     "new FILE",
		Short:   "Make a pair of keys to sign bundles with",
		Long:    "Make a pair of ed25519 keys: the private one in FILE, readable by you alone, and the\npublic one in FILE.pub, for those who are to trust it. It has no passphrase.",
		Example: "  carrel image key new release.key",
		Args:    needs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			k, err := c.CreateKey(cmd.Context(), path)
			if err != nil {
				return err
			}
			a.note(fmt.Sprintf("key %s is in %s; give %s.pub to those who are to trust it (carrel image trust)", k.Id, path, path))
			return nil
		},
	}
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the keys whose bundles are taken", Example: "  carrel image key ls",
		Args: needs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			keys, err := c.Keys(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return printArray(a, keys)
			}
			t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tID\tFILE")
			for _, k := range keys {
				file := k.Path
				if file == "" {
					file = "(of this program)"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\n", safe(k.Name), safe(k.Id), safe(file))
			}
			return t.Flush()
		},
	}
	ls.Flags().Bool("json", false, "print a JSON array")
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Take no more what keys have signed", Example: "  carrel image key rm releases",
		Long: "Take no more what keys have signed. Images that they have signed no longer start.",
		Args: needs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error { return c.ForgetKey(ctx, name) })
		},
	}
	cmd.AddCommand(create, ls, rm)
	return cmd
}
