package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Build, list, verify and remove images",
		Args:  needs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with images: build, ls, verify or rm")}
		},
	}
	build := &cobra.Command{
		Use:     "build [NAME]",
		Short:   "Build an image (NAME: default)",
		Long:    "Build an image: kernel, initrd and root file system. The kernel is built once\n(minutes) and kept; an interrupted build leaves nothing half-visible.",
		Example: "  carrel image build",
		Args:    needs(cobra.MaximumNArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.doImageBuild(cmd.Context(), args) },
	}
	build.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List images", Example: "  carrel image ls --json",
		Args: needs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doImageLs(cmd.Context()) },
	}
	ls.Flags().Bool("json", false, "print a JSON array")
	verify := &cobra.Command{
		Use: "verify NAME", Short: "Compare every part of an image with its digest", Example: "  carrel image verify default",
		Args: named("image", cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.doImageVerify(cmd.Context(), args[0]) },
	}
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Remove images that no guest uses", Example: "  carrel image rm default",
		Args: named("image", cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error { return c.RemoveImage(ctx, name) })
		},
	}
	cmd.AddCommand(build, ls, verify, rm)
	return cmd
}

func (a *app) doImageBuild(ctx context.Context, args []string) error {
	name := "default"
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
	img, err := c.BuildImage(ctx, name, p.update)
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
	return imageTable(a.out, is)
}

func imageTable(w io.Writer, is []*api.Image) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tKERNEL\tARCH\tSIZE\tFILES\tCREATED")
	for _, i := range is {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", safe(i.Name), safe(i.KernelVersion), safe(i.Arch),
			humanize.IBytes(imageSize(i)), humanize.IBytes(size(i.RootUncompressed)), when(i.Created))
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
	return nil
}
