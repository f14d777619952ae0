package review

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/wire"
)

// list reads the guest's list up to its end, or to where no more is taken.
func (im *importer) list() error {
	for {
		m := new(wire.Reviewed)
		if err := im.in.Read(m); err != nil {
			return lost(err)
		}
		switch k := m.Kind.(type) {
		case *wire.Reviewed_Change:
			if err := im.change(k.Change); err != nil {
				return err
			}
			im.listed++
		case *wire.Reviewed_Done:
			if im.whole = k.Done.Error == ""; !im.whole {
				im.cut("the guest says: " + wire.Text(k.Done.Error, wire.MaxText))
			}
			return nil
		default:
			return fmt.Errorf("%w: a frame of no use in a list", ErrGuest)
		}
		if im.listed >= maxListed || im.bytes > maxListedBytes {
			im.cut(fmt.Sprintf("the guest lists more than %d changes, or %d bytes of names", maxListed, maxListedBytes))
			im.mute = true
			return nil
		}
	}
}

// lost says what the end of a stream means.
func lost(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("the guest ended it without a word")
	case errors.Is(err, wire.ErrFrame):
		return fmt.Errorf("%w: %w", ErrGuest, err)
	}
	return err
}

// cut says why the review is not complete. The first reason stays.
func (im *importer) cut(why string) {
	if im.incomplete == "" {
		im.incomplete = why
	}
}

// change takes one entry of the list.
func (im *importer) change(c *wire.Changed) error {
	e, err := im.parse(c)
	if err != nil {
		return err
	}
	im.bytes += len(e.Name) + len(e.Target)
	id := im.hash(e.Name)
	if _, twice := im.seen[id]; twice {
		return fmt.Errorf("%w: %.200q comes twice", ErrGuest, e.Name)
	}
	if in := parent(e.Name); in != "" {
		if k := im.seen[im.hash(in)]; k != Folder && k != NewFolder {
			return fmt.Errorf("%w: %.200q comes without its folder", ErrGuest, e.Name)
		}
	}
	im.seen[id] = e.Kind
	var host *share.Info
	if !possible(e.Name) {
		e.Kind, e.Target, e.Size = Other, "", 0
	} else if host, err = lstat(im.Root, e.Name); err != nil {
		host = nil // whoever looks at it later finds out why
	}
	if host != nil && host.Mode.IsDir() && e.Kind != Folder {
		im.replaced[e.Name] = true
	}
	if e.Kind == NewFolder {
		im.anew[e.Name] = true
	}
	if stamp, ok := im.dropped[e.Name]; ok && sameStamp(stamp, e.Stamp) {
		im.held[e.Name] = true
		return nil
	}
	if settle(&e, host) {
		return nil
	}
	im.keep(e, host, im.listed)
	return nil
}

// parse checks what can be known of an entry alone.
func (im *importer) parse(c *wire.Changed) (e Entry, err error) {
	bad := func(why string) (Entry, error) {
		return Entry{}, fmt.Errorf("%w: %.200q %s", ErrGuest, c.Name, why)
	}
	if err := goodName(c.Name); err != nil {
		return bad(err.Error())
	}
	e = Entry{Name: c.Name, Mode: c.Mode & 0o777, Stamp: string(c.Stamp), Task: im.Task}
	switch c.Type {
	case wire.ChangedType_CHANGED_TYPE_REGULAR:
		e.Kind, e.Size = File, c.Size
	case wire.ChangedType_CHANGED_TYPE_DIRECTORY:
		e.Kind = Folder
	case wire.ChangedType_CHANGED_TYPE_NEW_DIRECTORY:
		e.Kind = NewFolder
	case wire.ChangedType_CHANGED_TYPE_SYMLINK:
		e.Kind, e.Target, e.Mode = Link, c.Target, 0o777
	case wire.ChangedType_CHANGED_TYPE_REMOVED:
		e.Kind, e.Mode = Removed, 0
	case wire.ChangedType_CHANGED_TYPE_OTHER:
		e.Kind = Other
	default:
		return bad("is of no known type")
	}
	switch {
	case c.Size < 0:
		return bad("has a negative size")
	case len(c.Target) > maxTarget || (c.Target != "") != (e.Kind == Link) || strings.IndexByte(c.Target, 0) >= 0:
		return bad("has an impossible target")
	case len(c.Stamp) == 0 || len(c.Stamp) > maxStamp:
		return bad("has an impossible stamp")
	}
	if c.MtimeNanos != 0 {
		e.Mtime = time.Unix(0, c.MtimeNanos)
	}
	return e, nil
}

// settle makes of the guest's word what it means on this host, and says whether
// that is nothing. Files are only known to be equal by their contents.
func settle(e *Entry, host *share.Info) (nothing bool) {
	folder := host != nil && host.Mode.IsDir()
	switch e.Kind {
	case Folder, NewFolder:
		e.Kind = NewFolder
		if folder { // what is not in it any more is an entry of its own
			e.Kind = Folder
		}
		return folder && sameMode(e.Mode, host)
	case Removed:
		return host == nil
	}
	return false
}

// keep puts an entry into the new index, if there is room.
func (im *importer) keep(e Entry, host *share.Info, index uint32) {
	if v := im.Rules.Judge(e.Name); v.Hidden {
		if in := parent(e.Name); in != "" && im.Rules.Judge(in).Hidden {
			return // the topmost says it all
		}
		e.Hidden = true
	}
	dir := e.Kind == Folder || e.Kind == NewFolder || e.Kind == Removed && host != nil && host.Mode.IsDir()
	e.Ignored = !e.Hidden && im.ignore.ignored(e.Name, dir, host)
	if e.Kind == Link && host != nil && host.Mode.Type() == os.ModeSymlink {
		if target, err := readlink(im.Root, e.Name); err == nil && target == e.Target {
			return
		}
	}
	which := 0
	if e.Ignored {
		which = 1
	}
	if im.keptLen += len(e.Name) + len(e.Target) + 64; im.left[which] == 0 || im.keptLen > maxKeptBytes {
		if !e.Ignored {
			im.cut(fmt.Sprintf("more than %d changes", im.MaxEntries))
		} else {
			im.uncounted++
		}
		return
	}
	im.left[which]--
	if im.Base != nil {
		if is, ok := im.Base.Look(e.Name); ok {
			e.Base = &is
		}
	}
	if old := im.old[e.Name]; old != nil {
		if e.Base == nil && im.Base == nil {
			e.Base = old.Base
		}
		e.Task = old.Task
	}
	im.kept = append(im.kept, kept{Entry: e, index: index, host: host})
}

// imply makes entries of what went with a folder: what the guest was told is
// below it, what the host still has, and what the guest did not list.
func (im *importer) imply() {
	if len(im.replaced) == 0 || im.Base == nil || !im.whole {
		return
	}
	for name, is := range im.Base.Below("") {
		if _, listed := im.seen[im.hash(name)]; listed || !im.touched(name) {
			continue
		}
		host, err := lstat(im.Root, name)
		if err != nil || host == nil || im.Rules.Judge(name).Hidden {
			continue
		}
		if stamp, ok := im.dropped[name]; ok && stamp == "" {
			im.implied[name] = true
			continue
		}
		im.keep(Entry{Name: name, Kind: Removed, Task: im.Task, Base: &is}, host, 0)
	}
}
