package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) execCommand() *cobra.Command {
	var f taskFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME [--] COMMAND [ARG...]",
		Short: "Run a command in a running guest",
		Long:  "Run a command in a running guest. The exit status is the command's, as with run.",
		Example: `  carrel exec dev -- make test
  carrel exec -u root dev -- apt-get install -y ./tool.deb
  tar c src | carrel exec -i dev -- tar x -C /tmp`,
		Args:              needs(arguments(2, many)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doExec(cmd.Context(), &f, args) },
	}
	cmd.Flags().SetInterspersed(false)
	f.add(cmd.Flags())
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

// instead makes err say what the person asked for, where that took several
// requests.
func instead(err error, tried string) error {
	if own := (*client.Error)(nil); errors.As(err, &own) {
		own.Message = tried
	}
	return err
}

func (a *app) doExec(ctx context.Context, f *taskFlags, args []string) error {
	name, args := args[0], args[1:]
	if len(args) > 1 && args[0] == "--" { // flags end at NAME, so this one is still there
		args = args[1:]
	}
	t, err := a.task(f, args)
	if err != nil {
		return err
	}
	if t.Guest = name; t.Check() != nil {
		return usageError{t.Check()}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if t.Dir == "" {
		g, err := c.Guest(ctx, name)
		if err != nil {
			return instead(err, "start a task in guest "+name)
		}
		t.Dir = a.folderIn(g)
	}
	return a.do(ctx, c, *t, "the task goes on in guest "+name)
}
