package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) daemonCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Look after the daemon, which starts by itself",
		Args:  needs(arguments(0, 0)),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with the daemon: run, status, stop, install or uninstall")}
		},
	}
	run := &cobra.Command{
		Use: "run", Short: "Run the daemon in the foreground", Args: needs(arguments(0, 0)),
		RunE: func(*cobra.Command, []string) error {
			path, err := client.FindDaemon()
			if err != nil {
				return err
			}
			return becomeDaemon(path)
		},
	}
	status := &cobra.Command{
		Use: "status", Short: "Say whether the daemon runs; the exit status is 1 if not", Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doDaemonStatus(cmd.Context()) },
	}
	status.Flags().Bool("json", false, "print a JSON object")
	var guests bool
	stop := &cobra.Command{
		Use: "stop", Short: "Stop the daemon; guests go on, and the next daemon takes them over",
		Example: "  carrel daemon stop\n  carrel daemon stop --guests", Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doDaemonStop(cmd.Context(), guests) },
	}
	stop.Flags().BoolVar(&guests, "guests", false, "stop every guest first")
	cmd.AddCommand(run, status, stop, a.daemonInstallCommand(), a.daemonUninstallCommand())
	return cmd
}

// existing connects to a daemon that runs, whatever its version.
func existing(ctx context.Context) (*client.Client, error) {
	return client.Connect(ctx, client.Options{NoStart: true, AnyVersion: true})
}

func (a *app) doDaemonStatus(ctx context.Context) error {
	c, err := existing(ctx)
	if client.IsNotRunning(err) {
		if a.json {
			a.explainJSON(err)
		} else {
			fmt.Fprintln(a.out, "no daemon is running")
		}
		return errNo
	}
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(s)
	}
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "process\t%d, since %s\n", s.Pid, when(s.Started))
	fmt.Fprintf(t, "version\t%s\n", strings.TrimSpace(safe(s.GetVersion().GetVersion())+" "+safe(s.GetVersion().GetCommit())))
	fmt.Fprintf(t, "guests\t%d, of which %d run\n", s.Guests, s.GuestsRunning)
	if s.GuestsWarm > 0 {
		fmt.Fprintf(t, "pool\t%d warm\n", s.GuestsWarm)
	}
	fmt.Fprintf(t, "memory\t%s\n", humanize.IBytes(size(s.ResidentBytes)))
	fmt.Fprintf(t, "socket\t%s\n", safe(s.Socket))
	fmt.Fprintf(t, "state\t%s\n", safe(s.StateDir))
	fmt.Fprintf(t, "cache\t%s\n", safe(s.CacheDir))
	return t.Flush()
}

func (a *app) doDaemonStop(ctx context.Context, guests bool) error {
	c, err := existing(ctx)
	if client.IsNotRunning(err) {
		a.note("no daemon is running")
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	if err := c.Shutdown(ctx, guests); err != nil {
		return err
	}
	a.note(fmt.Sprintf("the daemon has ended, after %v", time.Since(began).Round(time.Millisecond)))
	return nil
}
