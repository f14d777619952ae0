package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) startCommand() *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use:   "start [flags] [NAME]",
		Short: "Start a guest, new or stopped, and leave it running",
		Long: `Start a guest and print its name. A stopped guest starts again as it was made;
flags that say what a guest is made of are for new ones only.`,
		Example: `  carrel start dev
  carrel start --cpus 4 --memory 8G -v ~/src/app:rw app
  carrel exec app -- make`,
		Args:              names(arguments(0, 1)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doStart(cmd.Context(), cmd, &f, args) },
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&f.name, "name", "", "the guest's `name` (or give it as NAME)")
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors and the name")
	return cmd
}

func (a *app) doStart(ctx context.Context, cmd *cobra.Command, f *specFlags, args []string) error {
	if len(args) == 1 {
		if f.name != "" && f.name != args[0] {
			return usageError{fmt.Errorf("the guest has two names, %q and %q", f.name, args[0])}
		}
		f.name = args[0]
	}
	spec, usual, err := f.spec()
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	onlyNew := f.changed(cmd)
	if f.name != "" && !onlyNew {
		if _, err := c.Guest(ctx, f.name); err == nil {
			spec, usual = &api.GuestSpec{Name: f.name}, false // as it was made
		} else if client.CodeOf(err) != "not_found" {
			return err
		}
	}
	if err := a.requests(ctx, c, spec.Shares); err != nil {
		return err
	}
	g, err := a.startGuest(ctx, c, spec, onlyNew, usual)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, safe(g.Name))
	return err
}
