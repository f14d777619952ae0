package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Keep named disks for caches, which outlive guests",
		Long: `A volume is a disk of its own that a guest mounts: --volume NAME:PATH. It is made
empty when it is first used, outlives the guest, and takes of this machine's disk
what is in it. One guest at a time has it. What a guest writes to it is there for
the next guest that names it: give work that should not mix volumes of its own.`,
		Example: "  carrel run --volume go:/home/carrel/go -- go build ./...\n  carrel volume ls",
		Args:    needs(arguments(0, 0)),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with volumes: create, ls or rm")}
		},
	}
	var size string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an empty volume of another size than the usual 8 GiB", Example: "  carrel volume create --size 20G npm",
		Args: named("volume", arguments(1, 1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.doVolumeCreate(cmd.Context(), args[0], size) },
	}
	create.Flags().StringVar(&size, "size", "", "the `size` that it may grow to, such as 512M or 20G (default 8G)")
	create.Flags().Bool("json", false, "print a JSON object")
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List volumes, what they take, and who has them", Example: "  carrel volume ls --json",
		Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doVolumeLs(cmd.Context()) },
	}
	ls.Flags().Bool("json", false, "print a JSON array")
	var force bool
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Remove volumes and all that is in them", Example: "  carrel volume rm npm",
		Args: named("volume", arguments(1, many)), ValidArgsFunction: volumeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				waits := time.AfterFunc(time.Second, func() { a.note("waiting for the guest to end that has volume " + name) })
				defer waits.Stop()
				return c.RemoveVolume(ctx, name, force)
			})
		},
	}
	rm.Flags().BoolVarP(&force, "force", "f", false, "also if a stopped guest names it")
	cmd.AddCommand(create, ls, rm)
	return cmd
}

func (a *app) doVolumeCreate(ctx context.Context, name, size string) error {
	mib, err := parseMiB("--size", size)
	if err != nil {
		return usageError{err}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	v, err := c.CreateVolume(ctx, name, mib)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(v)
	}
	_, err = fmt.Fprintln(a.out, safe(v.Name))
	return err
}

func (a *app) doVolumeLs(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	vs, err := c.Volumes(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return printArray(a, vs)
	}
	return volumeTable(a.table(), vs, time.Now())
}

func volumeTable(w io.Writer, vs []*api.Volume, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSIZE\tTAKES\tWRITTEN\tIN USE BY\tGUESTS")
	for _, v := range vs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", safe(v.Name), humanize.IBytes(uint64(v.SizeMib)<<20), bytesWord(v.UsedBytes),
			shortTime(v.Written, now), orDash(v.Holder), orDash(strings.Join(v.Guests, " ")))
	}
	return t.Flush()
}

func bytesWord(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// parseVolume reads NAME:PATH.
func parseVolume(arg string) (*api.VolumeMount, error) {
	name, at, has := strings.Cut(arg, ":")
	if len(arg) > 2048 || !has || !strings.HasPrefix(at, "/") || strings.Contains(at, ":") {
		return nil, fmt.Errorf("--volume %q is not NAME:PATH, a volume's name and an absolute path in the guest", clip(arg, 64))
	}
	if err := client.CheckName("volume", name); err != nil {
		return nil, err
	}
	return &api.VolumeMount{Name: name, GuestPath: path.Clean(at)}, nil
}

// volumeNames completes names of volumes.
func volumeNames(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return complete((*client.Client).Volumes, func(v *api.Volume) (name, about string) { return v.Name, bytesWord(v.UsedBytes) })
}
