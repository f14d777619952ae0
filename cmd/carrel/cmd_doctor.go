package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Look for what a guest needs and say how to mend what is missing",
		Long:    "Look at everything that a guest needs of this host, and say of what is missing\nwhy, what mends it, and where the documentation has more. What is marked ! is\nworth mending, and guests run without. The exit status is 1 if something is\nmissing without which they do not.",
		Example: "  carrel doctor\n  carrel doctor --json",
		Args:    needs(arguments(0, 0)),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doDoctor(cmd.Context()) },
	}
	cmd.Flags().Bool("json", false, "print one JSON object per line")
	return cmd
}

func (a *app) doDoctor(ctx context.Context) error {
	bad := 0
	var printErr error
	found := func(f *api.Finding) {
		if f.Level == api.FindingLevel_FINDING_LEVEL_BAD {
			bad++
		}
		if a.json {
			if err := a.printJSON(f); err != nil {
				printErr = err
			}
			return
		}
		io.WriteString(a.out, findingText(f, width(a.out)))
	}
	c, err := a.connect(ctx)
	if no := noDaemon(err); no != nil && ctx.Err() == nil {
		found(no)
		if err := client.DoctorAlone(ctx, client.Options{}, found); err != nil && no.Check != missingProgram {
			return err
		}
	} else if err != nil {
		return err
	} else {
		defer c.Close()
		if err := c.Doctor(ctx, found); err != nil {
			return err
		}
	}
	switch {
	case printErr != nil:
		return printErr
	case bad > 0:
		return errNo
	}
	return nil
}

// missingProgram is the check that finds no carreld.
const missingProgram = "program"

// noDaemon makes a finding of what kept the daemon from starting or from being
// asked; nil if err is not of that kind.
func noDaemon(err error) *api.Finding {
	var e *client.Error
	if !errors.As(err, &e) {
		return nil
	}
	f := &api.Finding{Check: "daemon", Level: api.FindingLevel_FINDING_LEVEL_BAD, Text: "no daemon can be asked: " + e.Message, Cause: e.Cause, Cure: e.Cure, Docs: "docs/doctor.md#daemon"}
	if e.Code == "daemon_missing" {
		f.Check = missingProgram
	}
	return f
}

// findingText shows a finding in lines of at most width characters (0: as long
// as they are). A cure is not broken: it may be there to be copied.
func findingText(f *api.Finding, width int) string {
	const check, indent = 12, 2 + 12 + 1
	var lines []string
	for _, l := range quoted(f.Text) {
		lines = append(lines, fold(safe(l), max(width-indent, 0))...)
	}
	if f.Cause != "" {
		for i, l := range quoted(f.Cause) {
			if i == 0 {
				l = "why: " + l
			}
			lines = append(lines, fold(safe(l), max(width-indent, 0))...)
		}
	}
	if f.Cure != "" {
		lines = append(lines, "to mend it: "+safe(f.Cure))
	}
	if f.Docs != "" {
		lines = append(lines, "more: "+safe(f.Docs))
	}
	return fmt.Sprintf("%s %-*s %s\n", levelMark(f.Level), check, safe(f.Check), strings.Join(lines, "\n"+strings.Repeat(" ", indent)))
}

// quoted splits a text of the daemon that quotes another program into lines;
// the daemon has escaped what separated them.
func quoted(s string) []string {
	lines := strings.Split(strings.ReplaceAll(s, `\n`, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

func levelMark(l api.FindingLevel) string {
	switch l {
	case api.FindingLevel_FINDING_LEVEL_GOOD:
		return "✓"
	case api.FindingLevel_FINDING_LEVEL_BAD:
		return "✗"
	}
	return "!"
}
