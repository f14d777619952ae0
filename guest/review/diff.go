package review

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"znkr.io/diff"
	"znkr.io/diff/textdiff"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// DiffOptions say what of a change set is shown, and how.
type DiffOptions struct {
	// Paths are names below the root, of files and of folders with all below
	// them; empty: all but what is in .git.
	Paths []string
	// NoText leaves out the text of diffs.
	NoText bool
	// Context is how many lines around each change are shown; 0: 3.
	Context int
	// Ignored takes what the host's ignore rules leave out, too.
	Ignored bool
}

// Bounds of a diff's text. Beyond them there is none.
const (
	maxDiffFile    = 1 << 20 // bytes of a file
	maxDiffLines   = 20_000  // lines of a file
	maxDiffText    = 1 << 20 // bytes of the text
	maxDiffContext = 1000
	// maxBestLines is up to where the better of two ways to compare is taken,
	// which takes more than n log n steps.
	maxBestLines = 4000
	// sniffed is how many bytes are looked at for a NUL, as git does.
	sniffed = 8000
)

// Diff tells of each change, in the order of their paths. All in it is the
// guest's word, and to be escaped; only what is no UTF-8 is replaced, since a
// message cannot carry it. The text of a diff has no lines that name files.
func (s *Store) Diff(ctx context.Context, root *share.Root, rs *rules.Set, o DiffOptions, emit func(*api.Change) error) error {
	entries := s.Entries()
	c := Compare(root, rs, entries)
	for i := range entries {
		e := &entries[i]
		if !o.takes(e) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		f := c.Look(e)
		change, err := s.changeOf(root, &f, o)
		if err != nil {
			return err
		}
		if change == nil {
			continue
		}
		if err := emit(change); err != nil {
			return err
		}
	}
	return nil
}

// takes says whether an entry is shown. What is in .git is only shown to who
// names something in .git.
func (o *DiffOptions) takes(e *Entry) bool {
	if e.Ignored && !o.Ignored {
		return false
	}
	git := inGit(e.Name)
	if len(o.Paths) == 0 {
		return !git
	}
	for _, p := range o.Paths {
		if within(e.Name, p) && (!git || inGit(p)) {
			return true
		}
	}
	return false
}

// changeOf makes the message of a finding; nil: there is nothing to tell.
func (s *Store) changeOf(root *share.Root, f *Finding, o DiffOptions) (*api.Change, error) {
	if f.Does == api.ChangeKind_CHANGE_KIND_UNSPECIFIED && f.Conflict == "" {
		return nil, nil
	}
	c := &api.Change{
		Path: valid(filepath.Join(root.Path(), filepath.FromSlash(f.Name))), Kind: f.Does, Type: entryType(f.Kind),
		Mode: f.Mode, Size: f.Size, Target: valid(f.Target),
		Warning: valid(f.Warning), Conflict: valid(f.Conflict), Task: valid(f.Task), Seen: f.Entry.seen(root),
	}
	if f.Host != nil {
		c.OldType, c.OldMode, c.OldTarget = hostType(f.Host), perm(f.Host), valid(f.HostTarget)
		if sameMode(f.Mode, f.Host) {
			c.Mode = c.OldMode // which it keeps
		}
		if f.Host.Mode.IsRegular() {
			c.OldSize = f.Host.Size
		}
	}
	had := f.Host != nil && f.Host.Mode.IsRegular()
	if f.Kind == File && f.Blob != "" && had && f.Size == f.Host.Size {
		if sum, err := hashFile(root, f.Name, f.Size); err == nil && sum == f.Blob {
			if sameMode(f.Mode, f.Host) {
				return nil, nil
			}
			return c, nil // the mode alone
		}
	}
	if o.NoText || f.Hidden {
		return c, nil
	}
	var before, after []byte
	var err error
	switch {
	case f.Kind == File && f.Blob != "" && (had || f.Host == nil):
		if f.Size > maxDiffFile {
			return c, nil
		}
		if after, err = s.readBlob(f.Blob, f.Size); err != nil {
			return nil, err
		}
	case f.Kind == Removed && had:
	default:
		return c, nil
	}
	if had {
		if before, err = readFile(root, f.Name, maxDiffFile); err != nil {
			if !errors.Is(err, errLarge) && c.Conflict == "" {
				c.Conflict = valid("the host's file cannot be read: " + err.Error())
			}
			return c, nil
		}
	}
	if isBinary(before) || isBinary(after) {
		c.Binary = true
		return c, nil
	}
	c.Diff, c.Added, c.Removed = unified(before, after, o.Context)
	return c, nil
}

func isBinary(b []byte) bool { return bytes.IndexByte(b[:min(len(b), sniffed)], 0) >= 0 }

// unified is a unified diff without the lines that name the files; "" beyond the
// bounds.
func unified(before, after []byte, context int) (text string, added, removed int32) {
	newline := []byte("\n")
	x, y := bytes.Count(before, newline), bytes.Count(after, newline)
	if x > maxDiffLines || y > maxDiffLines {
		return "", 0, 0
	}
	if context == 0 {
		context = 3
	}
	options := []textdiff.Option{diff.Context(max(0, min(context, maxDiffContext)))}
	if x+y > maxBestLines {
		options = append(options, diff.Fast())
	}
	var b strings.Builder
	for _, h := range textdiff.Hunks(before, after, options...) {
		fmt.Fprintf(&b, "@@ -%s +%s @@\n", extent(h.LineNoX, h.EndLineNoX), extent(h.LineNoY, h.EndLineNoY))
		for _, e := range h.Edits {
			switch e.Op {
			case diff.Insert:
				added++
				b.WriteByte('+')
			case diff.Delete:
				removed++
				b.WriteByte('-')
			default:
				b.WriteByte(' ')
			}
			b.Write(e.Line)
			if !bytes.HasSuffix(e.Line, newline) {
				b.WriteString("\n\\ No newline at end of file\n")
			}
		}
	}
	if text = valid(b.String()); len(text) > maxDiffText {
		text = ""
	}
	return text, added, removed
}

// extent is the first line and the number of lines; of none, the line before.
func extent(from, to int) string {
	if from == to {
		return fmt.Sprintf("%d,0", from)
	}
	return fmt.Sprintf("%d,%d", from+1, to-from)
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func entryType(k Kind) api.EntryType {
	switch k {
	case File:
		return api.EntryType_ENTRY_TYPE_FILE
	case Folder, NewFolder:
		return api.EntryType_ENTRY_TYPE_FOLDER
	case Link:
		return api.EntryType_ENTRY_TYPE_LINK
	case Other:
		return api.EntryType_ENTRY_TYPE_OTHER
	}
	return api.EntryType_ENTRY_TYPE_UNSPECIFIED
}

func hostType(is *share.Info) api.EntryType {
	switch {
	case is.Mode.IsRegular():
		return api.EntryType_ENTRY_TYPE_FILE
	case is.Mode.IsDir():
		return api.EntryType_ENTRY_TYPE_FOLDER
	case is.Mode.Type() == linkType:
		return api.EntryType_ENTRY_TYPE_LINK
	}
	return api.EntryType_ENTRY_TYPE_OTHER
}
