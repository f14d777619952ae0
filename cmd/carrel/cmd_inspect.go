package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
)

func (a *app) inspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect NAME",
		Short:             "Show everything that is known of a guest",
		Example:           "  carrel inspect dev\n  carrel inspect --json dev",
		Args:              names(arguments(1, 1)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doInspect(cmd.Context(), args[0]) },
	}
	cmd.Flags().Bool("json", false, "print a JSON object")
	return cmd
}

func (a *app) doInspect(ctx context.Context, name string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	g, err := c.Guest(ctx, name)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(g)
	}
	return guestReport(a.out, width(a.out), g, time.Now())
}

// guestReport shows a guest in lines of at most width characters, or as long as
// they are if width is 0.
func guestReport(w io.Writer, width int, g *api.Guest, now time.Time) error {
	const label = 13
	var b strings.Builder
	row := func(name, format string, v ...any) {
		if s := safe(fmt.Sprintf(format, v...)); s != "" {
			fmt.Fprintf(&b, "%-*s%s\n", label, name, strings.Join(fold(s, max(width-label, 0)), "\n"+strings.Repeat(" ", label)))
		}
	}
	s := g.GetSpec()
	row("name", "%s", g.Name)
	row("state", "%s", idleWord(g))
	row("cause", "%s", g.Cause)
	row("image", "%s", s.GetImage())
	row("size", "%d cpus, %s memory, %s", s.GetCpus(), humanize.IBytes(uint64(s.GetMemoryMib())<<20), diskWord(s))
	for _, sh := range s.GetShares() {
		row("share", "%s (%s)", shareWord(sh), modeMeans(sh))
		row("", "%s", namesWord(sh))
	}
	for _, v := range s.GetVolumes() {
		row("volume", "%s at %s", v.GetName(), v.GetGuestPath())
	}
	row("review", "%s", reviewWord(g))
	row("reaches", "%s", reachWord(s.GetEgress()))
	row("steering", "%s", g.Steering)
	for _, p := range g.Ports {
		row("port", "%s -> %d", hostAddress(p), p.GuestPort)
	}
	switch {
	case g.Kept == api.GuestKept_GUEST_KEPT_REVIEW:
		row("kept", "until its changes are applied or discarded")
	case g.Kept == api.GuestKept_GUEST_KEPT_UNDO:
		row("kept", "for a day, so that what it did can be undone: its disk is gone")
	case s.GetEphemeral():
		row("kept", "no: it is removed when its task has ended, unless it leaves changes to review")
	}
	row("created", "%s", when(g.Created))
	row("started", "%s", when(g.Started))
	if g.Driver != "" {
		row("driver", "%s", g.Driver)
		row("accelerator", "%s: %s", g.Accelerator, strings.Join(quoted(g.AcceleratorReason), "; "))
	}
	row("boundary", "%s", wallWord(g))
	for _, note := range g.BoundaryNotes {
		row("", "%s", note)
	}
	if m := g.GetTimings(); m.GetBootNanos() > 0 {
		row("start took", "%v to the hypervisor, %v boot, %v setup", ms(m.KeeperNanos), ms(m.BootNanos), ms(m.SetupNanos))
	}
	if g.KeeperPid != 0 {
		row("keeper", "process %d", g.KeeperPid)
	}
	row("folder", "%s", g.StateDir)
	if len(g.HypervisorArgs) > 0 {
		row("hypervisor", "%s (--json has its arguments)", g.HypervisorArgs[0])
	}
	if len(g.Tasks) > 0 {
		b.WriteString("\n")
		taskTable(&b, width, g.Tasks, now)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// taskTable has a second line for a task whose status does not say it all.
func taskTable(b *strings.Builder, width int, tasks []*api.Task, now time.Time) {
	line := func(s string) {
		if width > 0 {
			s = clip(s, width)
		}
		b.WriteString(s + "\n")
	}
	const format = "%-26s  %-11s  %-6s  %-10s  %s"
	line(fmt.Sprintf(format, "TASK", "STATE", "STATUS", "STARTED", "COMMAND"))
	for _, k := range tasks {
		line(fmt.Sprintf(format, safe(k.Id), taskStateWord(k.State), statusWord(k), shortTime(k.Started, now), clip(commandLine(k.GetSpec().GetArgv()), 60)))
		if why := causeWord(k.GetEnding()); why != "" {
			line(fmt.Sprintf("%-26s  %s", "", safe(why)))
		}
	}
}

func diskWord(s *api.GuestSpec) string {
	if s.GetDiskMib() == 0 {
		return "no disk"
	}
	return humanize.IBytes(uint64(s.DiskMib)<<20) + " disk"
}

func statusWord(k *api.Task) string {
	if k.GetEnding() == nil {
		return "-"
	}
	return fmt.Sprint(k.Ending.Status)
}

func causeWord(e *api.Ending) string {
	switch {
	case e.GetCause() != "":
		return e.Cause
	case e.GetOom():
		return "out of memory"
	case e.GetTimedOut():
		return "its time limit was over"
	}
	return ""
}

// shortTime is the hour of what began within a day, else the day.
func shortTime(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	if now.Sub(t.AsTime()).Abs() < 24*time.Hour {
		return t.AsTime().Local().Format(time.TimeOnly)
	}
	return t.AsTime().Local().Format(time.DateOnly)
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}

func ms(nanos int64) time.Duration { return time.Duration(nanos).Round(time.Millisecond) }

// idleWord is a guest's state, and why it is that if nobody has asked for it.
func idleWord(g *api.Guest) string {
	switch word := guestWord(g); {
	case word == "paused":
		return word + " since " + g.Paused.AsTime().Local().Format(time.DateTime) + ", because nobody wanted anything from it: it goes on when somebody does"
	case g.StoppedIdle:
		return stateWord(g.State) + ", because nobody wanted anything from it: it starts again when somebody does"
	default:
		return word
	}
}
