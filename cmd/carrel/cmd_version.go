package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the daemon that runs", Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doVersion(cmd.Context()) },
	}
	cmd.Flags().Bool("json", false, "print one JSON object: this program's")
	return cmd
}

func (a *app) doVersion(ctx context.Context) error {
	own := client.Build()
	if a.json {
		return a.printJSON(own)
	}
	line := func(what string, v *api.VersionResponse) {
		s := v.Version
		if v.Commit != "" {
			s += " (" + v.Commit + ")"
		}
		fmt.Fprintf(a.out, "%-8s %s, %s, API %s\n", what, safe(s), safe(v.Go), safe(v.Api))
	}
	line("carrel", own)
	c, err := existing(ctx)
	if err != nil {
		return nil // no daemon, or one that cannot be asked: not what was asked for
	}
	defer c.Close()
	line("carreld", c.DaemonVersion())
	return nil
}
