package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Build, pull, publish, list, verify and remove images",
		Args:  needs(arguments(0, 0)),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with images: build, pull, import, push, export, restore, trust, key, ls, verify, rm or prune")}
		},
	}
	var arch string
	build := &cobra.Command{
		Use:   "build [NAME]",
		Short: "Build an image (NAME: default)",
		Long: `Build an image: kernel, initrd and root file system. The kernel is built once
(minutes) and kept; an interrupted build leaves nothing half-visible.

With --arch the image is for hosts of another architecture, and called
default-ARCH unless it gets another name. No guest starts from it here: carrel
image push and export bring it to them.`,
		Example: "  carrel image build\n  carrel image build --arch arm64",
		Args:    needs(arguments(0, 1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.doImageBuild(cmd.Context(), args, arch) },
	}
	build.Flags().StringVar(&arch, "arch", "", "what hosts it is for, amd64 or arm64 (default: this one)")
	build.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	var back bool
	options := func() (o []client.PullOption) {
		if back {
			o = append(o, client.AllowRollback)
		}
		return o
	}
	pull := &cobra.Command{
		Use:   "pull REFERENCE",
		Short: "Bring an image from a registry",
		Long: `Bring an image from a registry, or see whether the one that is here is still what
its name leads to. Credentials are those of docker login. An image that is
damaged is made again.

A bundle (see carrel image push) is taken if a trusted key has signed it, and not
if this machine has had a later version. The image that it replaces is kept.`,
		Example: "  carrel image pull python:3.13\n  carrel image pull ghcr.io/owner/name@sha256:...",
		Args:    needs(arguments(1, 1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := imageNames(args); err != nil {
				return err
			}
			return a.bring(cmd.Context(), func(ctx context.Context, c *client.Client, on func(*api.Progress)) (*api.Image, error) {
				return c.PullImage(ctx, args[0], on, options()...)
			})
		},
	}
	pull.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	pull.Flags().BoolVar(&back, "allow-rollback", false, "take a bundle that is older than one that was here")
	var name string
	load := &cobra.Command{
		Use:     "import PATH",
		Short:   "Bring an image from a file or folder",
		Long:    "Bring an image from an OCI layout (a folder), or a tarball that docker save,\npodman save or skopeo wrote, or a bundle that carrel image export wrote.",
		Example: "  carrel image import ./layout --name tools:1\n  carrel image import app.tar\n  carrel image import default.carrel.tar",
		Args:    needs(arguments(1, 1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return a.bring(cmd.Context(), func(ctx context.Context, c *client.Client, on func(*api.Progress)) (*api.Image, error) {
				return c.ImportImage(ctx, path, name, on, options()...)
			})
		},
	}
	load.Flags().StringVar(&name, "name", "", "what it is to be called, a `reference` such as tools:1 (default: localhost/imported/ and the file's name)")
	load.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	load.Flags().BoolVar(&back, "allow-rollback", false, "take a bundle that is older than one that was here")
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List images", Example: "  carrel image ls --json",
		Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doImageLs(cmd.Context()) },
	}
	ls.Flags().Bool("json", false, "print a JSON array")
	verify := &cobra.Command{
		Use: "verify IMAGE", Short: "Compare every part of an image with its digest", Example: "  carrel image verify default\n  carrel image verify python:3.13",
		Args: needs(arguments(1, 1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := imageNames(args); err != nil {
				return err
			}
			return a.doImageVerify(cmd.Context(), args[0])
		},
	}
	rm := &cobra.Command{
		Use: "rm IMAGE...", Short: "Remove images that no guest uses", Example: "  carrel image rm default\n  carrel image rm python:3.13",
		Args: needs(arguments(1, many)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := imageNames(args); err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error { return c.RemoveImage(ctx, name) })
		},
	}
	var yes, all bool
	prune := &cobra.Command{
		Use:   "prune",
		Short: "Say what images and layers nothing needs, and remove them",
		Long: `Say what nothing needs: pulled images to which no name leads any more and that no
guest is made from, and layers that no image needs. With --yes it is removed.`,
		Example: "  carrel image prune\n  carrel image prune --all --yes",
		Args:    needs(arguments(0, 0)),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doImagePrune(cmd.Context(), all, yes) },
	}
	prune.Flags().BoolVar(&yes, "yes", false, "remove it")
	prune.Flags().BoolVar(&all, "all", false, "also pulled images that have a name, unless a guest is made from them")
	cmd.AddCommand(build, pull, load, a.imagePushCommand(), a.imageExportCommand(), a.imageRestoreCommand(), a.imageTrustCommand(), a.imageKeyCommand(), ls, verify, rm, prune)
	return cmd
}

// imageNames looks at names before anything is started for them.
func imageNames(names []string) error {
	for _, n := range names {
		if err := client.CheckImage(n); err != nil {
			return usageError{err}
		}
	}
	return nil
}

// bring shows how far an image is on its way, and prints what it can be called for good.
func (a *app) bring(ctx context.Context, do func(context.Context, *client.Client, func(*api.Progress)) (*api.Image, error)) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	p := a.progress()
	img, err := do(ctx, c, p.update)
	p.done()
	if err != nil {
		return err
	}
	if img.Bundle != nil {
		return a.tellBundle(img)
	}
	a.note(fmt.Sprintf("image %s is here: %s on disk, of %s of layers", img.Name, humanize.IBytes(imageSize(img)), humanize.IBytes(size(img.LayersSize))))
	_, err = fmt.Fprintln(a.out, safe(img.Name+"@"+img.Digest))
	return err
}

func (a *app) doImagePrune(ctx context.Context, all, yes bool) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := c.PruneImages(ctx, all, !yes)
	if err != nil {
		return err
	}
	word := "would be removed"
	if yes {
		word = "removed"
	}
	for _, i := range p.Images {
		fmt.Fprintf(a.out, "%s: %s\n", word, safe(i.Name))
	}
	fmt.Fprintf(a.out, "%s: %d images, %d layers and the like, %s\n", word, len(p.Images), p.Blobs, humanize.IBytes(size(p.Freed)))
	if !yes && p.Freed > 0 {
		again := "carrel image prune --yes"
		if all {
			again = "carrel image prune --all --yes"
		}
		a.note("nothing was removed yet: `" + again + "` does it")
	}
	return nil
}

func (a *app) doImageBuild(ctx context.Context, args []string, arch string) error {
	name := "default"
	if arch != "" && arch != runtime.GOARCH { // the daemon is on this host
		name += "-" + arch
	}
	if len(args) == 1 {
		name = args[0]
	}
	if err := client.CheckName("image", name); err != nil {
		return usageError{err}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	p := a.progress()
	img, err := c.BuildImage(ctx, name, p.update, client.ForArch(arch))
	p.done()
	if err != nil {
		return err
	}
	a.note(fmt.Sprintf("image %s is built: %s on disk, %s of files", img.Name, humanize.IBytes(imageSize(img)), humanize.IBytes(size(img.RootUncompressed))))
	return nil
}

func (a *app) doImageLs(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	is, err := c.Images(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return printArray(a, is)
	}
	return imageTable(a.table(), is)
}

func imageTable(w io.Writer, is []*api.Image) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tKERNEL\tARCH\tSIZE\tFILES\tLAYERS\tSHARED\tCREATED")
	for _, i := range is {
		kernel, layers, shared := i.KernelVersion, "-", "-"
		if i.Digest != "" {
			kernel, layers, shared = "-", humanize.IBytes(size(i.LayersSize)), humanize.IBytes(size(i.LayersShared))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", safe(i.Name), safe(kernel), safe(i.Arch),
			humanize.IBytes(imageSize(i)), humanize.IBytes(size(i.RootUncompressed)), layers, shared, when(i.Created))
	}
	return t.Flush()
}

func imageSize(i *api.Image) (n uint64) {
	for _, p := range i.GetParts() {
		n += size(p.Size)
	}
	return n
}

func size(n int64) uint64 { return uint64(max(n, 0)) }

func (a *app) doImageVerify(ctx context.Context, name string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	img, err := c.VerifyImage(ctx, name)
	if err != nil {
		return err
	}
	for _, p := range img.GetParts() {
		fmt.Fprintf(a.out, "✓ %-10s %s  %s\n", safe(p.Name), safe(p.Sha256), humanize.IBytes(size(p.Size)))
	}
	if b := img.GetBundle(); b != nil {
		fmt.Fprintf(a.out, "✓ %-10s version %d, signed %s by key %s (%s), from %s\n", "bundle", b.Version, when(b.Signed), safe(b.Key), safe(b.KeyId), safe(b.From))
		if b.Expires != nil {
			fmt.Fprintf(a.out, "  %-10s its signature is taken for new images until %s\n", "", when(b.Expires))
		}
	}
	return nil
}
