package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) eventsCommand() *cobra.Command {
	var o client.EventOptions
	cmd := &cobra.Command{
		Use:   "events [flags] [NAME]",
		Short: "Show what happened to guests, tasks, reviews, egress and images",
		Long: `Show what happened to guests, tasks, reviews, egress and images, of one guest if
one is named. Each event has a number; with --after a reader goes on where it
was, and is told if something is missing between. With -f go on.`,
		Example:           "  carrel events -f\n  carrel events --json --after 120\n  carrel events -f --new --json dev",
		Args:              names(arguments(0, 1)),
		ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Guest = strings.Join(args, "")
			return a.doEvents(cmd.Context(), o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.Follow, "follow", "f", false, "go on with what happens")
	fs.Uint64Var(&o.After, "after", 0, "begin after the event with this `NUMBER` (default: all that are kept)")
	fs.BoolVar(&o.OnlyNew, "new", false, "leave out what has happened by now")
	fs.Bool("json", false, "print one JSON object per line")
	return cmd
}

func (a *app) doEvents(ctx context.Context, o client.EventOptions) error {
	if o.After > 0 && o.OnlyNew {
		return usageError{errors.New("--after and --new exclude each other")}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	heard := false
	err = c.Events(ctx, o, func(ev *api.Event) error {
		heard = true
		if a.json {
			return a.printJSON(ev)
		}
		_, err := io.WriteString(a.out, happened(ev, width(a.out)))
		return err
	})
	// Events outlive guests, so any name may be asked for, also one that was typed wrong.
	if err == nil && !heard && o.Guest != "" && !o.OnlyNew {
		a.note("no event of a guest " + o.Guest + " is kept")
	}
	return err
}

// happened is an event in one line, which width cuts (0: not).
func happened(ev *api.Event, width int) string {
	at := strings.Repeat("-", len(time.TimeOnly))
	if ev.Time != nil {
		at = ev.Time.AsTime().Local().Format(time.TimeOnly)
	}
	guest := ev.Guest
	if guest == "" {
		guest = "-"
	}
	line := fmt.Sprintf("%d  %s  %-16s  %s", ev.Sequence, at, safe(guest), safe(what(ev)))
	if width > 0 {
		line = clip(line, width)
	}
	return line + "\n"
}

func what(ev *api.Event) string {
	switch k := ev.Kind.(type) {
	case *api.Event_Gap:
		return fmt.Sprintf("events %d to %d are not kept any more", k.Gap.First, ev.Sequence)
	case *api.Event_Changed:
		s := guestWord(k.Changed)
		if k.Changed.Cause != "" {
			s += ": " + k.Changed.Cause
		}
		if r := k.Changed.Review; r != nil && r.Added+r.Changed+r.Removed > 0 {
			s += fmt.Sprintf(", %d changes to review", r.Added+r.Changed+r.Removed)
		}
		return s
	case *api.Event_Removed:
		return "removed"
	case *api.Event_Task:
		return taskHappened(k.Task)
	case *api.Event_Egress:
		v := k.Egress.GetVerdict()
		s := actionWord(v.GetAction())
		switch k.Egress.Kind {
		case api.EgressEventKind_EGRESS_EVENT_KIND_END:
			s = "end"
		case api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION:
			s = "asks (" + k.Egress.Question + ")"
		}
		return "egress " + s + " " + destination(k.Egress)
	case *api.Event_EgressLeftOut:
		return fmt.Sprintf("egress: %d verdicts are not kept (carrel egress shows the last ones)", k.EgressLeftOut.Count)
	case *api.Event_Image:
		return "image " + k.Image.GetName()
	case *api.Event_ImageRemoved:
		return "image " + k.ImageRemoved.Name + " removed"
	case *api.Event_DaemonStarted:
		return fmt.Sprintf("daemon %s started, process %d", k.DaemonStarted.Version, k.DaemonStarted.Pid)
	}
	return "something that this program does not know (it may be older than the daemon)"
}

func taskHappened(t *api.Task) string {
	s := "task " + shortTask(t.Id) + " "
	switch e := t.Ending; {
	case t.State == api.TaskState_TASK_STATE_INTERRUPTED:
		s += "interrupted: " + e.GetCause()
	case t.State == api.TaskState_TASK_STATE_EXITED:
		s += fmt.Sprintf("ended with status %d", e.GetStatus())
	case t.State == api.TaskState_TASK_STATE_RUNNING:
		s += "runs"
	default:
		s += "accepted"
	}
	if argv := t.GetSpec().GetArgv(); len(argv) > 0 {
		s += ": " + strings.Join(argv, " ")
	}
	return s
}
