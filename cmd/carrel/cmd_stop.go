package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) stopCommand() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Stop guests",
		Long: `Stop guests: politely first, by force when --grace is over, within 10 s in all.
One with a disk has up to 30 s more to write down what it has in memory. Of a
guest with a share in review, what it has changed is brought over before it ends,
which may take 10 s more. One that boots is stopped when it is up, which may take a
minute.`,
		Example:           "  carrel stop dev\n  carrel stop --grace 1s dev app",
		Args:              names(arguments(1, many)),
		ValidArgsFunction: guestNames(100),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				_, err := c.StopGuest(ctx, name, grace)
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 0, "time to end in order (default 5s)")
	return cmd
}

// each does f for every name, also after one fails, and returns the last error;
// the others have been said.
func (a *app) each(ctx context.Context, names []string, f func(context.Context, *client.Client, string) error) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var last error
	for _, name := range names {
		if err := f(ctx, c, name); err != nil {
			if last != nil {
				a.explain(nil, last)
			}
			last = err
		}
	}
	return last
}
