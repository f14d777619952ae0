package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) shellCommand() *cobra.Command {
	var f taskFlags
	cmd := &cobra.Command{
		Use:               "shell [flags] NAME",
		Short:             "Open a shell in a running guest",
		Example:           "  carrel shell dev\n  carrel shell -u root dev",
		Args:              names(arguments(1, 1)),
		ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !term.IsTerminal(int(a.in.Fd())) || !term.IsTerminal(int(a.out.Fd())) {
				return usageError{fmt.Errorf("a shell needs a terminal: standard input or output is none (without one: carrel exec -i %s -- sh)", args[0])}
			}
			f.tty = true
			return a.doExec(cmd.Context(), &f, append([]string{args[0]}, loginShell...))
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set a variable: `NAME=VALUE`, or NAME to pass this one on")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "folder in the guest (default: the shared folder)")
	fs.StringVarP(&f.user, "user", "u", "", "user in the guest (default: the image's, or 1000)")
	return cmd
}

// loginShell is bash where the image has it. Every image that has a shell has this one.
var loginShell = []string{"/bin/sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh -l"}
