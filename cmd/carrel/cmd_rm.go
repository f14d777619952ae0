package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm NAME...",
		Short:             "Remove guests and all that is their own",
		Long:              "Remove guests: their disks, their tasks' output, their state, and with --force\nalso changes that nobody has reviewed. Shared folders stay.",
		Example:           "  carrel rm dev\n  carrel rm -f dev app",
		Args:              names(arguments(1, many)),
		ValidArgsFunction: guestNames(100),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.RemoveGuest(ctx, name, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop it first if it runs, and throw away changes that wait for review")
	return cmd
}
