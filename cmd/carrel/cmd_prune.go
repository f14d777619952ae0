package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

type pruneFlags struct{ dry, volumes, yes bool }

func (a *app) pruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Give back room on this machine's disk that nobody needs",
		Long: `Show what nobody needs and what it takes, and remove it after a yes: guests of
which only what undo needs is left, empty disks that are kept to copy from, and
with --volumes the volumes that no guest names. Changes that wait for review,
and guests that you named, stay.`,
		Example: "  carrel prune --dry-run\n  carrel prune --volumes",
		Args:    needs(arguments(0, 0)),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doPrune(cmd.Context(), f) },
	}
	cmd.Flags().BoolVarP(&f.dry, "dry-run", "n", false, "show what would go, and remove nothing")
	cmd.Flags().BoolVar(&f.volumes, "volumes", false, "also volumes that no guest names, with all that is in them")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	cmd.Flags().Bool("json", false, "print a JSON array")
	return cmd
}

func (a *app) doPrune(ctx context.Context, f pruneFlags) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	o := client.PruneOptions{DryRun: true, Volumes: f.volumes}
	seen, err := c.Prune(ctx, o)
	if err != nil {
		return err
	}
	sure := f.yes || f.dry
	if !a.json && (f.dry || !f.yes) {
		if err := a.pruneTable(seen.Items); err != nil {
			return err
		}
	}
	switch {
	case f.dry && a.json:
		return printArray(a, seen.Items)
	case f.dry:
		return nil
	case len(seen.Items) == 0:
		if a.json {
			return printArray(a, seen.Items)
		}
		a.note("there is nothing that nobody needs")
		return nil
	case !sure && !a.asks():
		return usageError{errors.New("nothing is removed without a yes: --yes, or --dry-run to look")}
	case !sure:
		answer, err := a.ask(ctx, "remove that? It cannot be undone. [y]es, [N]o")
		if err != nil {
			return err
		}
		if answer != "y" && answer != "yes" {
			a.note("nothing was removed")
			return errNo
		}
	}
	// What was shown, and nothing that came since.
	o.DryRun, o.Only = false, seen.Items
	done, err := c.Prune(ctx, o)
	if err != nil {
		return err
	}
	stays := 0
	for _, i := range done.Items {
		if i.Refused != "" {
			stays++
			a.warn(i.Kind + " " + i.Name + " stays: " + i.Refused)
		}
	}
	if a.json {
		err = printArray(a, done.Items)
	} else {
		a.note(fmt.Sprintf("%s are free again", bytesWord(done.FreedBytes)))
	}
	if err == nil && stays > 0 {
		return errNo
	}
	return err
}

func (a *app) pruneTable(items []*api.PruneItem) error {
	if len(items) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(a.table(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tNAME\tTAKES\tWHY")
	total := int64(0)
	for _, i := range items {
		total += i.Bytes
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", safe(i.Kind), safe(i.Name), bytesWord(i.Bytes), safe(i.Reason))
	}
	fmt.Fprintf(t, "\t\t%s\tin all\n", bytesWord(total))
	return t.Flush()
}
