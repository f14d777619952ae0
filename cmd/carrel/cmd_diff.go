package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

type diffFlags struct {
	stat, exitCode, ignored, noPager bool
	context                          uint32
	saw                              func(*api.Change) // nil: nobody asks
}

func (a *app) diffCommand() *cobra.Command {
	var f diffFlags
	cmd := &cobra.Command{
		Use:   "diff [flags] [NAME] [PATH...]",
		Short: "Show what a guest changed and nobody has applied yet",
		Long: `Show what a guest changed in the folders that it has in review, or in the files
and folders that are named. Nothing of it has happened on this machine.

What programs here would run or obey, such as git's hooks, is marked with "!",
and what is in conflict with a change on this machine with "x". All that the guest
wrote is escaped, so that it cannot play tricks with the terminal.

NAME may be left out if only one guest has
changes, or only one of those that have the current folder.`,
		Example:           "  carrel diff\n  carrel diff dev src\n  carrel diff dev --stat\n  carrel diff dev --json | jq -r .path",
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doDiff(cmd.Context(), &f, args) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.stat, "stat", false, "a line for each file, without what changed in it")
	fs.BoolVar(&f.exitCode, "exit-code", false, "end with status 1 if there are changes")
	fs.BoolVar(&f.ignored, "ignored", false, "also what the ignore rules here (.gitignore) leave out")
	fs.BoolVar(&f.noPager, "no-pager", false, "do not page on a terminal")
	fs.Uint32VarP(&f.context, "unified", "U", 3, "`N` lines around each change")
	fs.Bool("json", false, "print one JSON object per line")
	return cmd
}

func (a *app) doDiff(ctx context.Context, f *diffFlags, args []string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	name, paths, err := a.guestOf(ctx, c, args, "changes to review", hasChanges)
	if err != nil {
		return err
	}
	o := client.DiffOptions{Paths: paths, NoText: f.stat, Context: max(f.context, 1), Ignored: f.ignored}
	n := 0
	if a.json {
		err = c.Diff(ctx, name, o, func(ch *api.Change) error { n++; return a.printJSON(ch) })
	} else {
		err = a.paged(f.noPager, func(w io.Writer) error {
			d := a.differ(w)
			d.stat = f.stat
			var rest *api.Beside
			if len(paths) == 0 {
				o.Beside = func(b *api.Beside) error { rest = b; return nil }
			}
			err := c.Diff(ctx, name, o, func(ch *api.Change) error {
				if f.saw != nil {
					f.saw(ch)
				}
				return d.show(ch)
			})
			n = d.n
			if err == nil {
				err = d.end(name)
			}
			if err == nil && rest != nil {
				err = d.beside(rest, name, f.ignored)
			}
			return err
		})
	}
	if err == nil && f.exitCode && n > 0 {
		return errNo
	}
	return err
}

// differ shows changes, one after the other.
type differ struct {
	w     *bufio.Writer
	paint painter
	cwd   string
	stat  bool

	n, added, changed, removed, warnings, conflicts int
}

func (a *app) differ(w io.Writer) *differ {
	cwd, err := currentFolder()
	if err != nil {
		cwd = ""
	}
	return &differ{w: bufio.NewWriter(w), paint: paints(a.out), cwd: cwd}
}

// kindMarks stand before a path: added, changed, removed.
var kindMarks = map[api.ChangeKind]struct{ mark, colour string }{
	api.ChangeKind_CHANGE_KIND_ADDED: {"A", green}, api.ChangeKind_CHANGE_KIND_CHANGED: {"M", cyan}, api.ChangeKind_CHANGE_KIND_REMOVED: {"D", red},
}

func (d *differ) show(c *api.Change) error {
	d.n++
	switch c.Kind {
	case api.ChangeKind_CHANGE_KIND_ADDED:
		d.added++
	case api.ChangeKind_CHANGE_KIND_REMOVED:
		d.removed++
	default:
		d.changed++
	}
	mark := kindMarks[c.Kind]
	if mark.mark == "" {
		mark = kindMarks[api.ChangeKind_CHANGE_KIND_CHANGED]
	}
	head := d.paint.in(mark.colour, mark.mark) + " " + d.paint.in(bold, shownPath(c.Path, d.cwd))
	if c.Added > 0 || c.Removed > 0 {
		head += "  " + d.paint.in(green, fmt.Sprintf("+%d", c.Added)) + " " + d.paint.in(red, fmt.Sprintf("-%d", c.Removed))
	}
	if what := whatChanged(c); what != "" {
		head += "  (" + what + ")"
	}
	fmt.Fprintln(d.w, head)
	if c.Warning != "" {
		d.warnings++
		fmt.Fprintln(d.w, d.paint.in(yellow, "  ! needs a yes of its own: "+safe(c.Warning)))
	}
	if c.Conflict != "" {
		d.conflicts++
		fmt.Fprintln(d.w, d.paint.in(red, "  x cannot be applied as it is: "+safe(c.Conflict)))
	}
	if !d.stat && c.Diff != "" {
		d.text(c.Diff)
		fmt.Fprintln(d.w)
	}
	return d.w.Flush()
}

// text shows a unified diff. Its names are not shown: they are above it.
func (d *differ) text(diff string) {
	head := true
	for line := range strings.SplitSeq(strings.TrimSuffix(diff, "\n"), "\n") {
		if head && (strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "+++ ")) {
			continue
		}
		head = false
		colour := ""
		switch {
		case strings.HasPrefix(line, "@@"):
			colour = cyan
		case strings.HasPrefix(line, "+"):
			colour = green
		case strings.HasPrefix(line, "-"):
			colour = red
		}
		line = safeLine(line)
		if colour != "" {
			line = d.paint.in(colour, line)
		}
		fmt.Fprintln(d.w, line)
	}
}

// beside says what there is beside what was shown.
func (d *differ) beside(s *api.Beside, name string, ignored bool) error {
	if s.Ignored > 0 && !ignored {
		fmt.Fprintf(d.w, "%s that the ignore rules here leave out: --ignored\n", counted(int(s.Ignored), "change"))
	}
	if s.Git > 0 {
		fmt.Fprintf(d.w, "%s within .git, which stays out: carrel apply --git %s brings the commits\n", counted(int(s.Git), "change"), name)
	}
	if s.Incomplete != "" {
		fmt.Fprintln(d.w, d.paint.in(red, "this is not all: "+safe(s.Incomplete)))
	}
	return d.w.Flush()
}

// end says how many changes there were.
func (d *differ) end(name string) error {
	if d.n == 0 {
		fmt.Fprintln(d.w, "guest "+name+" has changed nothing that waits for review")
		return d.w.Flush()
	}
	s := &api.ReviewSummary{Warnings: int32(d.warnings), Conflicts: int32(d.conflicts)}
	line := fmt.Sprintf("%s: %d added, %d changed, %d removed", counted(d.n, "change"), d.added, d.changed, d.removed)
	if look := lookWord(s); look != "" {
		line += "; " + look
	}
	fmt.Fprintln(d.w, line)
	return d.w.Flush()
}
