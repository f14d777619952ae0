package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show and check what a guest did",
		Long: `Each guest has a log of what crossed its boundary: hosts reached and refused,
secrets used, rules changed, tasks. Each record holds the hash of the one before.
The log stays when the guest is stopped, and goes when it is removed.`,
		Example: "  carrel audit show dev\n  carrel audit verify dev",
		Args:    needs(arguments(0, 0)),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with the audit log: show or verify")}
		},
	}
	verify := &cobra.Command{
		Use: "verify NAME", Short: "Check the chain of a guest's audit log (status 1: broken)",
		Long: `Check the chain of a guest's audit log. It shows lines that were changed, taken
out or put in. It cannot show an end that was cut off, or a log that was written
anew: note the head, and compare it with a later log's records.`,
		Example: "  carrel audit verify dev",
		Args:    names(arguments(1, 1)), ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.doAuditVerify(cmd.Context(), args[0]) },
	}
	verify.Flags().Bool("json", false, "print a JSON object")
	var last int
	show := &cobra.Command{
		Use: "show NAME", Short: "Print a guest's audit log",
		Example: "  carrel audit show dev\n  carrel audit show -n 20 --json dev",
		Args:    names(arguments(1, 1)), ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.doAuditShow(cmd.Context(), args[0], last) },
	}
	show.Flags().IntVarP(&last, "last", "n", 0, "only the last `N` records (default: all)")
	show.Flags().Bool("json", false, "print the records as they are kept, one JSON object a line")
	cmd.AddCommand(show, verify)
	return cmd
}

func (a *app) doAuditVerify(ctx context.Context, name string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := c.VerifyAudit(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case a.json:
		err = a.printJSON(r)
	case r.Intact:
		_, err = fmt.Fprintf(a.out, "intact: %d records\nhead: %s\n", r.Records, safe(r.Head))
	default:
		_, err = fmt.Fprintf(a.out, "BROKEN after %d records: %s\nhead: %s\n", r.Records, safe(r.Broken), safe(r.Head))
	}
	if err == nil && !r.Intact {
		err = errNo
	}
	return err
}

func (a *app) doAuditShow(ctx context.Context, name string, last int) error {
	if last < 0 {
		return usageError{errors.New("-n takes a number of records")}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ShowAudit(ctx, name, last, func(record []byte) error {
		line := safe(string(record))
		if !a.json {
			line = auditLine(record)
		}
		_, err := fmt.Fprintln(a.out, line)
		return err
	})
}

// auditLine shows a record to a person: when, what, and its fields as they are.
func auditLine(b []byte) string {
	var r struct {
		Seq  uint64
		Time time.Time
		Kind string
		Data json.RawMessage
	}
	if json.Unmarshal(b, &r) != nil {
		return safe(string(b))
	}
	when := "-"
	if !r.Time.IsZero() {
		when = r.Time.Local().Format(time.DateTime)
	}
	return safe(fmt.Sprintf("%6d  %s  %-16s %s", r.Seq, when, r.Kind, bytes.TrimSpace(r.Data)))
}
