package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:               "logs [-f] NAME [TASK]",
		Short:             "Print the output of a guest's last task, or of one",
		Long:              "Print the output of a guest's last task, or of TASK, as far as it is kept\n(256 MiB). With -f go on until the task ends.",
		Example:           "  carrel logs dev\n  carrel logs -f dev\n  carrel logs dev 01JD8Q8ZV6Q2W7KXS2M0T4RBNE",
		Args:              needs(arguments(1, 2)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doLogs(cmd.Context(), follow, args) },
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more until the task ends")
	return cmd
}

func (a *app) doLogs(ctx context.Context, follow bool, args []string) error {
	name := args[0]
	if err := client.CheckName("guest", name); err != nil {
		return usageError{err}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	task := ""
	if len(args) == 2 {
		task = args[1]
	} else {
		ts, err := c.Tasks(ctx, name)
		if err != nil {
			return instead(err, "print the logs of guest "+name)
		}
		for _, t := range ts {
			task = max(task, t.Id) // ULIDs sort by time
		}
		if task == "" {
			return &client.Error{Code: "not_found", Message: "guest " + name + " has had no task", Cure: "carrel exec " + name + " -- COMMAND"}
		}
	}
	out, errw, flush := a.outputs(false)
	defer flush()
	p, err := c.Attach(ctx, name, task, client.AttachOptions{Stdout: out, Stderr: errw, NoFollow: !follow, Notice: a.note})
	if err != nil {
		return err
	}
	// How the task ended is for run and exec to say: the logs were printed.
	if err := p.Wait(); err != nil && !errors.As(err, new(*client.ExitError)) {
		return err
	}
	return nil
}
