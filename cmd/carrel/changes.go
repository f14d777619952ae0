package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// pending is how many changes wait for a yes or a no.
func pending(s *api.ReviewSummary) int { return int(s.GetAdded() + s.GetChanged() + s.GetRemoved()) }

// counted is "1 file", "2 files".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// waitsWord says in a column what waits of a guest.
func waitsWord(g *api.Guest) string {
	s := g.GetReview()
	switch n := pending(s); {
	case g.GetKept() == api.GuestKept_GUEST_KEPT_UNDO:
		return "undo"
	case n > 0 && s.GetWarnings()+s.GetConflicts() > 0:
		return fmt.Sprintf("%d (%d!)", n, s.GetWarnings()+s.GetConflicts())
	case n > 0:
		return fmt.Sprint(n)
	}
	return "-"
}

// reviewWord says in a line what waits of a guest, or "".
func reviewWord(g *api.Guest) string {
	s := g.GetReview()
	var parts []string
	for _, p := range []struct {
		n    int32
		word string
	}{{s.GetAdded(), "added"}, {s.GetChanged(), "changed"}, {s.GetRemoved(), "removed"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	w := strings.Join(parts, ", ")
	if look := lookWord(s); look != "" {
		w += " (" + look + ")"
	}
	if w != "" {
		w += ": carrel diff " + g.GetName() + ", carrel apply " + g.GetName()
	}
	if s.GetIncomplete() != "" {
		w = strings.TrimPrefix(w+"; incomplete: "+s.Incomplete, "; ")
	}
	if s.GetUndoable() > 0 {
		w = strings.TrimPrefix(w+"; what was done can be undone: carrel undo "+g.GetName(), "; ")
	}
	return w
}

// lookWord says what of the changes a person should look at, or "".
func lookWord(s *api.ReviewSummary) string {
	var parts []string
	for _, p := range []struct {
		n         int32
		one, more string
	}{{s.GetWarnings(), "needs a look", "need a look"}, {s.GetConflicts(), "is in conflict", "are in conflict"}} {
		switch {
		case p.n == 1:
			parts = append(parts, "1 "+p.one)
		case p.n > 1:
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.more))
		}
	}
	return strings.Join(parts, ", ")
}

// summaryTime bounds the count at the end of a run.
const summaryTime = 2 * time.Minute

// sayChanges ends a run with what it changed, and what to type next. A guest
// that is gone has left nothing.
func (a *app) sayChanges(ctx context.Context, c *client.Client, g *api.Guest) {
	if a.quiet || !mayChange(g.GetSpec().GetShares()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, summaryTime)
	defer cancel()
	s, err := c.ReviewSummary(ctx, g.Name)
	switch code := client.CodeOf(err); {
	case code == "not_found" || code == "no_review":
		return
	case err != nil:
		a.warn(err.Error())
		return
	}
	if line := changesLine(g.Name, s); line != "" {
		a.note(line)
	}
}

// mayChange says whether a guest could change something that is told of at its
// end: what waits in a review, or what undo takes back.
func mayChange(shares []*api.Share) bool {
	return slices.ContainsFunc(shares, func(s *api.Share) bool { return s.GetMode() != api.ShareMode_SHARE_MODE_RO })
}

func changesLine(name string, s *api.ReviewSummary) string {
	n := pending(s)
	switch {
	case n > 0:
		look := lookWord(s)
		if look != "" {
			look = " (" + look + ")"
		}
		line := fmt.Sprintf("%s changed%s: carrel diff %s, carrel apply %s", counted(n, "file"), look, name, name)
		if s.GetIncomplete() != "" {
			line += "; this is not all: " + s.Incomplete
		}
		return line
	case s.GetIncomplete() != "":
		return "what was changed could not be read: " + s.Incomplete
	case s.GetUndoable() > 0:
		return "what it changed can be undone: carrel undo " + name
	}
	return ""
}

// painter puts colours around words, on a terminal whose user wants them.
type painter bool

// paints says whether f is such a terminal (https://no-color.org).
func paints(f *os.File) painter {
	return painter(term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

const (
	red, green, yellow, cyan, bold = "31", "32", "33", "36", "1"
)

func (p painter) in(colour, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

// safeLine is safe for a line of a file: tabs are common there, and harmless.
func safeLine(s string) string {
	if !strings.ContainsRune(s, '\t') {
		return safe(s)
	}
	parts := strings.Split(s, "\t")
	for i, p := range parts {
		parts[i] = safe(p)
	}
	return strings.Join(parts, "\t")
}

// shownPath is a path of the host as the person would type it here.
func shownPath(p, cwd string) string {
	if rel, err := filepath.Rel(cwd, p); cwd != "" && err == nil && filepath.IsLocal(rel) {
		return safe(rel)
	}
	return safe(p)
}

func kindWord(k api.ChangeKind) string {
	switch k {
	case api.ChangeKind_CHANGE_KIND_ADDED:
		return "added"
	case api.ChangeKind_CHANGE_KIND_REMOVED:
		return "removed"
	}
	return "changed"
}

func typeWord(t api.EntryType) string {
	switch t {
	case api.EntryType_ENTRY_TYPE_FOLDER:
		return "folder"
	case api.EntryType_ENTRY_TYPE_LINK:
		return "link"
	case api.EntryType_ENTRY_TYPE_OTHER:
		return "special file"
	case api.EntryType_ENTRY_TYPE_FILE:
		return "file"
	}
	return "nothing"
}

// whatChanged says of a change what its diff does not.
func whatChanged(c *api.Change) string {
	var parts []string
	was := c.OldType != api.EntryType_ENTRY_TYPE_UNSPECIFIED
	is := c.Kind != api.ChangeKind_CHANGE_KIND_REMOVED
	switch {
	case was && is && c.OldType != c.Type:
		parts = append(parts, typeWord(c.OldType)+" became "+typeWord(c.Type))
	case is && c.Type != api.EntryType_ENTRY_TYPE_FILE:
		parts = append(parts, typeWord(c.Type))
	case !is && c.OldType != api.EntryType_ENTRY_TYPE_FILE && was:
		parts = append(parts, typeWord(c.OldType))
	}
	if is && c.Type == api.EntryType_ENTRY_TYPE_LINK {
		to := "to " + c.Target
		if was && c.OldTarget != "" && c.OldTarget != c.Target {
			to = "from " + c.OldTarget + " " + to
		}
		parts = append(parts, to)
	}
	if is && was && c.Type == c.OldType && c.Type != api.EntryType_ENTRY_TYPE_LINK && c.Mode != c.OldMode {
		parts = append(parts, fmt.Sprintf("mode %04o became %04o", c.OldMode, c.Mode))
	} else if is && !was && c.Type == api.EntryType_ENTRY_TYPE_FILE && c.Mode&0o111 != 0 {
		parts = append(parts, "executable")
	}
	size := func(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
	if c.Diff == "" && (is && c.Type == api.EntryType_ENTRY_TYPE_FILE || !is && c.OldType == api.EntryType_ENTRY_TYPE_FILE) {
		word := ""
		if c.Binary {
			word = "binary, "
		}
		switch {
		case is && was && c.Size != c.OldSize:
			parts = append(parts, word+size(c.OldSize)+" became "+size(c.Size))
		case is:
			parts = append(parts, word+size(c.Size))
		default:
			parts = append(parts, word+size(c.OldSize))
		}
	}
	return safe(strings.Join(parts, ", "))
}

// guestOf finds out which guest is meant: the first argument, if a guest has
// that name; else the one guest of which has says that it is a candidate, among
// those that have the current folder if there are any. The other arguments are
// paths of the host.
func (a *app) guestOf(ctx context.Context, c *client.Client, args []string, what string, has func(*api.Guest) bool) (name string, paths []string, err error) {
	gs, err := c.Guests(ctx)
	if err != nil {
		return "", nil, err
	}
	rest := args
	switch {
	case len(args) > 0 && slices.ContainsFunc(gs, func(g *api.Guest) bool { return g.Name == args[0] }):
		name, rest = args[0], args[1:]
	case len(args) > 0 && client.CheckName("guest", args[0]) == nil && !isThere(args[0]):
		return "", nil, &client.Error{Code: "not_found", Message: "there is no guest " + args[0], Cure: "carrel ls shows those that there are; a file is meant with ./" + args[0]}
	default:
		cwd, _ := currentFolder() // "": no guest has it, and one of another folder may be meant
		if gs, err = a.count(ctx, c.ReviewSummary, gs, cwd); err != nil {
			return "", nil, err
		}
		if name, err = meant(gs, cwd, what, has); err != nil {
			return "", nil, err
		}
		a.note("guest " + name)
	}
	for _, p := range rest {
		abs, err := hostPath(p)
		if err != nil {
			return "", nil, err
		}
		paths = append(paths, abs)
	}
	return name, paths, nil
}

// slowCount is after how long it is said who is waited for.
const slowCount = 3 * time.Second

// count asks the guests that have the current folder, all at once, what they have
// changed, where the list of guests may not have it yet: one for a command that
// ended a moment ago, and any after a start of the daemon. Without it another guest
// would be taken for the one that is meant, and so no answer is an error. Those
// that are gone meanwhile are left out.
func (a *app) count(ctx context.Context, summary func(context.Context, string) (*api.ReviewSummary, error), gs []*api.Guest, cwd string) ([]*api.Guest, error) {
	var asked []*api.Guest
	var names []string
	for _, g := range gs {
		// A guest that stands still has changed nothing since it was counted, and
		// would be woken. One that has ended is not: its disk is read.
		known := g.Review != nil && (!g.GetSpec().GetEphemeral() || g.Paused != nil)
		if !known && hasFolder(g, cwd) {
			asked, names = append(asked, g), append(names, g.Name)
		}
	}
	if len(asked) == 0 {
		return gs, nil
	}
	actx, cancel := context.WithTimeout(ctx, summaryTime)
	defer cancel()
	errs := make([]error, len(asked))
	var all sync.WaitGroup
	for n, g := range asked {
		all.Go(func() {
			var s *api.ReviewSummary
			if s, errs[n] = summary(actx, g.Name); errs[n] == nil {
				g.Review = s
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	slow := time.NewTimer(slowCount)
	defer slow.Stop()
	select {
	case <-done:
	case <-slow.C:
		a.note("waiting for what has changed in guest " + strings.Join(names, ", ") + " (who names the guest that is meant does not wait)")
		<-done
	}
	for n, err := range errs {
		switch code := client.CodeOf(err); {
		case err == nil, code == "no_review":
		case code == "not_found":
			gs = slices.DeleteFunc(gs, func(g *api.Guest) bool { return g == asked[n] })
		case ctx.Err() != nil:
			return nil, err
		default:
			return nil, fmt.Errorf("guest %s has this folder, and what it has changed is not known (name the guest that is meant): %w", asked[n].Name, err)
		}
	}
	return gs, nil
}

// meant is the one guest of which has is true: of those that have the current
// folder, if there are any. Another folder's is not taken then: what is thrown away
// is gone.
func meant(gs []*api.Guest, cwd, what string, has func(*api.Guest) bool) (string, error) {
	var here, those, others []string
	for _, g := range gs {
		switch mine := hasFolder(g, cwd); {
		case mine && has(g):
			those = append(those, g.Name)
			fallthrough
		case mine:
			here = append(here, g.Name)
		case has(g):
			others = append(others, g.Name)
		}
	}
	if len(here) == 0 {
		those, others = others, nil
	}
	switch {
	case len(those) == 1:
		return those[0], nil
	case len(those) > 1:
		return "", usageError{fmt.Errorf("%d guests have %s: name one of %s", len(those), what, strings.Join(those, ", "))}
	case len(others) > 0:
		return "", &client.Error{Code: "nothing_waits", Message: "no guest that has this folder (" + strings.Join(here, ", ") + ") has " + what, Cure: "name another: " + strings.Join(others, ", ")}
	}
	return "", &client.Error{Code: "nothing_waits", Message: "no guest has " + what, Cure: "carrel ls shows the guests that there are"}
}

// hasFolder says whether a guest sees a folder of the host in a share of which
// changes are told.
func hasFolder(g *api.Guest, dir string) bool { return sees(g, dir) && mayChange(g.Spec.Shares) }

// sees says whether a folder of the host lies in one of a guest's shares.
func sees(g *api.Guest, dir string) bool {
	return dir != "" && slices.ContainsFunc(g.GetSpec().GetShares(), func(s *api.Share) bool {
		rel, err := filepath.Rel(s.Path, dir)
		return err == nil && filepath.IsLocal(rel)
	})
}

func isThere(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// hasChanges and hasUndo say whether a guest is a candidate.
func hasChanges(g *api.Guest) bool { return pending(g.GetReview()) > 0 }
func hasUndo(g *api.Guest) bool    { return g.GetReview().GetUndoable() > 0 }

// ask reads one line from the terminal.
func (a *app) ask(ctx context.Context, question string) (string, error) {
	fmt.Fprint(a.err, "carrel: "+safe(question)+" ")
	type read struct {
		line string
		err  error
	}
	got := make(chan read, 1)
	go func() { // not waited for: a read of a terminal cannot be called off
		var line []byte
		var b [1]byte
		for len(line) < 256 {
			n, err := a.in.Read(b[:])
			if n == 0 || err != nil || b[0] == '\n' {
				if len(line) == 0 && n == 0 {
					got <- read{"", errors.New("the terminal has no more to say")}
					return
				}
				break
			}
			line = append(line, b[0])
		}
		got <- read{strings.ToLower(strings.TrimSpace(string(line))), nil}
	}()
	select {
	case r := <-got:
		return r.line, r.err
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return "", ctx.Err()
	}
}

// asks says whether a person can be asked.
func (a *app) asks() bool {
	return !a.json && term.IsTerminal(int(a.in.Fd())) && term.IsTerminal(int(a.err.Fd()))
}
