package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

type applyFlags struct {
	yes, overwrite, git, dryRun, ignored bool
	shown                                string
}

func (a *app) applyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply [flags] [NAME] [PATH...]",
		Short: "Bring what a guest changed into the folders here",
		Long: `Bring what a guest changed into the folders here, file by file: all of it, or the
files and folders that are named. carrel undo takes it back.

What programs here would run or obey, such as git's hooks, needs a yes of its own:
on a terminal it is asked for, elsewhere --yes gives it. Without it the rest is
applied. What was changed here meanwhile is in conflict and stays as it is, unless
--overwrite is given. What is applied after that question is what was shown, even
if the guest has gone on since; --shown does the same for a program, which applies
what it has seen in FILE and nothing that is newer.

NAME may be left out if only one guest has
changes, or only one of those that have the current folder.

The status is 0 if all of it was applied, and 1 if something was left.`,
		Example: "  carrel apply\n  carrel apply dev src README.md\n  carrel apply dev --dry-run\n  carrel apply dev --yes --overwrite",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.doApply(cmd.Context(), &f, args) },
	}
	cmd.ValidArgsFunction = guestNames(1)
	fs := cmd.Flags()
	fs.BoolVarP(&f.yes, "yes", "y", false, "apply also what needs a yes of its own; look at carrel diff first")
	fs.BoolVar(&f.overwrite, "overwrite", false, "write over what was changed here meanwhile")
	fs.BoolVar(&f.git, "git", false, "bring the commits made in the guest as refs/carrel/NAME/")
	fs.BoolVarP(&f.dryRun, "dry-run", "n", false, "say what would happen, and do nothing")
	fs.BoolVar(&f.ignored, "ignored", false, "also what the ignore rules here (.gitignore) leave out")
	fs.StringVar(&f.shown, "shown", "", "only what `FILE`, the output of carrel diff --json, shows, as it was then")
	fs.BoolVarP(&a.quiet, "quiet", "q", false, "say only what was left, and why")
	fs.Bool("json", false, "print one JSON object per line")
	return cmd
}

func (a *app) doApply(ctx context.Context, f *applyFlags, args []string) error {
	var seen [][]byte
	switch {
	case f.git && f.shown != "":
		return usageError{errors.New("--git brings commits, which carrel diff does not show: not with --shown")}
	case f.shown != "":
		var err error
		if seen, err = readSeen(f.shown); err != nil {
			return err
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	name, paths, err := a.guestOf(ctx, c, args, "changes to review", hasChanges)
	if err != nil {
		return err
	}
	o := client.ApplyOptions{Paths: paths, AcceptWarnings: f.yes, Overwrite: f.overwrite, Git: f.git, DryRun: f.dryRun, Ignored: f.ignored, Seen: seen}
	if !f.yes && !f.dryRun && !f.git && seen == nil && a.asks() {
		if err := a.askWarned(ctx, c, name, &o); err != nil {
			return err
		}
	}
	r := a.results()
	if err := c.Apply(ctx, name, o, r.show); err != nil {
		return err
	}
	switch {
	case a.json:
	case r.done+r.left == 0:
		a.note("guest " + name + " has changed nothing that could be applied")
	case f.dryRun:
		a.note(fmt.Sprintf("%s would be applied, %d left", counted(r.done, "change"), r.left))
	case r.done > 0:
		a.note(wasApplied(name, f.git, r.done, r.left))
	}
	if r.left > 0 {
		return errNo
	}
	return nil
}

// wasApplied ends an apply with what takes it back. Commits are git's business:
// they change no file, and undo does not know them.
func wasApplied(name string, git bool, done, left int) string {
	if git {
		return fmt.Sprintf("%s brought, %d left; git for-each-ref refs/carrel/%s shows them, git update-ref -d REF takes one away", counted(done, "ref"), left, name)
	}
	return fmt.Sprintf("%s applied, %d left; carrel undo %s takes back what was applied", counted(done, "change"), left, name)
}

// readSeen reads what carrel diff --json has shown.
func readSeen(path string) (seen [][]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for in := json.NewDecoder(f); ; {
		var ch struct{ Seen []byte }
		switch err := in.Decode(&ch); {
		case err == io.EOF && len(seen) == 0: // nothing must not count for no wish
			return nil, fmt.Errorf("%s shows no change (carrel diff --json prints them)", path)
		case err == io.EOF:
			return seen, nil
		case err != nil:
			return nil, fmt.Errorf("read what %s shows: %w (carrel diff --json prints it)", path, err)
		case len(ch.Seen) == 0:
			return nil, fmt.Errorf("a line of %s is no change (carrel diff --json prints them)", path)
		}
		seen = append(seen, ch.Seen)
	}
}

// askWarned shows what needs a yes of its own, and asks for it. What is then
// applied is what was shown, as it was shown last: a guest that runs may have
// gone on since.
func (a *app) askWarned(ctx context.Context, c *client.Client, name string, o *client.ApplyOptions) error {
	d := a.differ(a.err)
	d.paint = paints(a.err)
	shown := map[string][]byte{}
	err := c.Diff(ctx, name, client.DiffOptions{Paths: o.Paths, NoText: true, Ignored: o.Ignored}, func(ch *api.Change) error {
		shown[ch.Path] = ch.Seen
		if ch.Warning == "" {
			return nil
		}
		if d.n == 0 {
			a.warn("a person should look at these first:")
		}
		return d.show(ch)
	})
	if err != nil || d.n == 0 {
		return err
	}
	defer func() { o.Seen = slices.Collect(maps.Values(shown)) }()
	for {
		answer, err := a.ask(ctx, fmt.Sprintf("apply %s, too? [y]es, [n]o, only the others, [d]iff, [q]uit", map[bool]string{true: "it", false: "them"}[d.n == 1]))
		if err != nil {
			return err
		}
		switch answer {
		case "y", "yes":
			o.AcceptWarnings = true
			return nil
		case "n", "no":
			return nil
		case "d", "diff":
			f := &diffFlags{context: 3, ignored: o.Ignored, saw: func(ch *api.Change) { shown[ch.Path] = ch.Seen }}
			if err := a.doDiff(ctx, f, append([]string{name}, o.Paths...)); err != nil {
				return err
			}
		case "q", "quit":
			a.note("nothing was applied")
			return errNo
		}
	}
}

// results shows what became of each change.
type results struct {
	a          *app
	cwd        string
	paint      painter
	done, left int
	applied    int // of an undo: were applied from the review
}

func (a *app) results() *results {
	cwd, err := currentFolder()
	if err != nil {
		cwd = ""
	}
	return &results{a: a, cwd: cwd, paint: paints(a.out)}
}

func (r *results) show(ev *api.ApplyEvent) error {
	if ev.Refused == "" {
		r.done++
		if ev.Applied {
			r.applied++
		}
	} else {
		r.left++
	}
	if r.a.json {
		return r.a.printJSON(ev)
	}
	path := shownPath(ev.Path, r.cwd)
	var err error
	switch {
	case ev.Refused != "":
		_, err = fmt.Fprintf(r.a.out, "%s %s: %s\n", r.paint.in(yellow, "left   "), path, safe(ev.Refused))
	case !r.a.quiet:
		_, err = fmt.Fprintf(r.a.out, "%s %s\n", r.paint.in(green, fmt.Sprintf("%-7s", kindWord(ev.Kind))), path)
	}
	return err
}

func (a *app) discardCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "discard [flags] [NAME] [PATH...]",
		Short: "Throw away what a guest changed",
		Long: `Throw away what a guest changed in the folders that it has in review: all of it,
or the files and folders that are named. It cannot be undone. The folders here
stay as they are.

NAME may be left out if only one guest has
changes, or only one of those that have the current folder.`,
		Example: "  carrel discard dev\n  carrel discard dev build",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.doDiscard(cmd.Context(), yes, args) },
	}
	cmd.ValidArgsFunction = guestNames(1)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask on a terminal")
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func (a *app) doDiscard(ctx context.Context, yes bool, args []string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	name, paths, err := a.guestOf(ctx, c, args, "changes to review", hasChanges)
	if err != nil {
		return err
	}
	if !yes && a.asks() {
		what := "all that guest " + name + " has changed"
		if len(paths) > 0 {
			what = "what guest " + name + " has changed there"
		}
		answer, err := a.ask(ctx, "throw away "+what+"? It cannot be undone. [y]es, [N]o")
		if err != nil {
			return err
		}
		if answer != "y" && answer != "yes" {
			a.note("nothing was thrown away")
			return errNo
		}
	}
	n, err := c.Discard(ctx, name, paths...)
	if err == nil {
		a.note(counted(n, "change") + " thrown away")
	}
	return err
}

type undoFlags struct {
	task      string
	overwrite bool
}

func (a *app) undoCommand() *cobra.Command {
	var f undoFlags
	cmd := &cobra.Command{
		Use:   "undo [flags] [NAME] [PATH...]",
		Short: "Take back what was applied, or what a task did in a live share",
		Long: `Take back the last apply, or, if there was none, what the last task changed in
folders that the guest may change itself (rw, rw-nodelete), as far as it is kept.
What was changed here since stays as it is, unless --overwrite is given. What had
been applied is in the review again, and can be applied once more or discarded;
the guest itself sees what is here. NAME may be left out if there is only one guest
of which something can be undone, or only one of those that have the current folder.

The status is 0 if all of it was taken back, and 1 if something was left.`,
		Example: "  carrel undo\n  carrel undo dev src/main.go\n  carrel undo dev --task 01JD8Q8ZV6Q2W7KXS2M0T4RBNE",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.doUndo(cmd.Context(), &f, args) },
	}
	cmd.ValidArgsFunction = guestNames(1)
	fs := cmd.Flags()
	fs.StringVar(&f.task, "task", "", "only what the task with this `ID` changed (carrel inspect NAME lists them)")
	fs.BoolVar(&f.overwrite, "overwrite", false, "write over what was changed since")
	fs.BoolVarP(&a.quiet, "quiet", "q", false, "say only what was left, and why")
	fs.Bool("json", false, "print one JSON object per line")
	return cmd
}

func (a *app) doUndo(ctx context.Context, f *undoFlags, args []string) error {
	if len(f.task) > 64 {
		return usageError{errors.New("--task is longer than an id")}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	name, paths, err := a.guestOf(ctx, c, args, "something to undo", hasUndo)
	if err != nil {
		return err
	}
	r := a.results()
	if err := c.Undo(ctx, name, client.UndoOptions{Task: f.task, Paths: paths, Overwrite: f.overwrite}, r.show); err != nil {
		return err
	}
	switch {
	case a.json:
	case r.done+r.left == 0:
		a.note("there is nothing to undo")
	default:
		a.note(fmt.Sprintf("%s taken back, %d left", counted(r.done, "change"), r.left))
		if r.applied > 0 {
			a.note("what had been applied waits in the review again: carrel diff " + name + ", carrel apply " + name + " or carrel discard " + name + " (the guest itself sees what is here)")
		}
	}
	if r.left > 0 {
		return errNo
	}
	return nil
}
