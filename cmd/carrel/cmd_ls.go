package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) lsCommand() *cobra.Command {
	var all, size bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List guests, and what of them waits for review",
		Example: "  carrel ls\n  carrel ls --json\n  carrel ls --size",
		Args:    needs(arguments(0, 0)),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doLs(cmd.Context(), all, size) },
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those of which only what undo needs is left")
	cmd.Flags().BoolVarP(&size, "size", "s", false, "what each takes of this machine's disk: its own disk, its review, its output")
	cmd.Flags().Bool("json", false, "print a JSON array")
	return cmd
}

func (a *app) doLs(ctx context.Context, all, size bool) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	gs, err := c.Guests(ctx)
	if err != nil {
		return err
	}
	if size {
		return a.lsSizes(ctx, c, gs)
	}
	if !all {
		gs = slices.DeleteFunc(gs, func(g *api.Guest) bool { return g.Kept == api.GuestKept_GUEST_KEPT_UNDO })
	}
	if a.json {
		return printArray(a, gs)
	}
	return guestTable(a.table(), gs, time.Now())
}

// lsSizes shows what guests take. Those of which only undo is left take room, too.
func (a *app) lsSizes(ctx context.Context, c *client.Client, gs []*api.Guest) error {
	u, err := c.DiskUsage(ctx, "")
	if err != nil {
		return err
	}
	if a.json {
		return printArray(a, u.Guests)
	}
	return sizeTable(a.table(), gs, u)
}

func sizeTable(w io.Writer, gs []*api.Guest, u *api.DiskUsageResponse) error {
	states := map[string]string{}
	for _, g := range gs {
		states[g.Name] = guestWord(g)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tDISK\tREVIEW\tOUTPUT\tOTHER\tALL")
	sum := int64(0)
	for _, g := range u.Guests {
		all := g.DiskBytes + g.ReviewBytes + g.OutputBytes + g.OtherBytes
		sum += all
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", safe(g.Guest), orDash(states[g.Guest]), bytesWord(g.DiskBytes), bytesWord(g.ReviewBytes), bytesWord(g.OutputBytes), bytesWord(g.OtherBytes), bytesWord(all))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s in all; %s are free, and %s have to be for a start\n", bytesWord(sum), bytesWord(u.FreeBytes), bytesWord(u.FloorBytes))
	return err
}

func guestTable(w io.Writer, gs []*api.Guest, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tWALL\tIMAGE\tCPUS\tMEMORY\tSHARES\tREVIEW\tAGE\tTASK")
	for _, g := range gs {
		s := g.GetSpec()
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", safe(g.Name), guestWord(g), wallWord(g), safe(s.GetImage()), s.GetCpus(),
			humanize.IBytes(uint64(s.GetMemoryMib())<<20), sharesWord(s.GetShares()), waitsWord(g), age(g, now), taskWord(g.Tasks))
	}
	return t.Flush()
}

// wallWord is the wall that stands around a guest, or, before it does, the one
// that was asked for.
func wallWord(g *api.Guest) string {
	for _, w := range []string{g.Boundary, g.GetSpec().GetBoundary()} {
		if w != "" {
			return safe(w)
		}
	}
	return "-"
}

// guestWord is a guest's state; one that is paused is ready for whoever needs it, and
// one that was stopped for idleness is started for them.
func guestWord(g *api.Guest) string {
	switch {
	case g.Paused != nil && g.State == api.GuestState_GUEST_STATE_READY:
		return "paused"
	case g.StoppedIdle && g.State == api.GuestState_GUEST_STATE_STOPPED:
		return "stopped (idle)"
	}
	return stateWord(g.State)
}

func stateWord(s api.GuestState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "GUEST_STATE_"))
}

func taskStateWord(s api.TaskState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "TASK_STATE_"))
}

func sharesWord(shares []*api.Share) string {
	switch len(shares) {
	case 0:
		return "-"
	case 1:
		return clipFront(safe(shareWord(shares[0])), 26)
	}
	return fmt.Sprintf("%s +%d", clipFront(safe(shareWord(shares[0])), 23), len(shares)-1)
}

// age is how long a guest has been running, or how long it has existed.
func age(g *api.Guest, now time.Time) string {
	t := g.GetCreated()
	if g.GetState() == api.GuestState_GUEST_STATE_READY && g.GetStarted() != nil {
		t = g.GetStarted()
	}
	if t == nil {
		return "-"
	}
	switch d := now.Sub(t.AsTime()); {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// taskWord shows the last task that runs, and how many more do.
func taskWord(tasks []*api.Task) string {
	var last *api.Task
	more := -1
	for _, t := range tasks {
		if t.State == api.TaskState_TASK_STATE_RUNNING || t.State == api.TaskState_TASK_STATE_QUEUED {
			last = t
			more++
		}
	}
	switch {
	case last == nil:
		return "-"
	case more > 0:
		return fmt.Sprintf("%s +%d", clip(commandLine(last.GetSpec().GetArgv()), 36), more)
	}
	return clip(commandLine(last.GetSpec().GetArgv()), 40)
}

// commandLine shows a command so that a shell would read it the same way.
func commandLine(argv []string) string {
	var out []string
	for _, a := range argv {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?[](){}<>|&;#~!") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return safe(strings.Join(out, " "))
}
