package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
)

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Look for what a guest needs and say how to mend what is missing",
		Long:    "Look at everything that a guest needs. The exit status is 1 if something\nis missing.",
		Example: "  carrel doctor\n  carrel doctor --json",
		Args:    needs(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doDoctor(cmd.Context()) },
	}
	cmd.Flags().Bool("json", false, "print one JSON object per line")
	return cmd
}

func (a *app) doDoctor(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	bad := 0
	var printErr error
	err = c.Doctor(ctx, func(f *api.Finding) {
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
	})
	switch {
	case err != nil:
		return err
	case printErr != nil:
		return printErr
	case bad > 0:
		return errNo
	}
	return nil
}

// findingText shows a finding in lines of at most width characters (0: as long
// as they are). A cure is not broken: it may be there to be copied.
func findingText(f *api.Finding, width int) string {
	const check, indent = 12, 2 + 12 + 1
	var lines []string
	for _, l := range quoted(f.Text) {
		lines = append(lines, fold(safe(l), max(width-indent, 0))...)
	}
	if f.Cure != "" {
		lines = append(lines, "to mend it: "+safe(f.Cure))
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
