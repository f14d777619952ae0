package review

import (
	"fmt"
	"path"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// Finding is one entry against what the host has now, without a look at
// contents: what applying it would do, and what stands against that.
type Finding struct {
	Entry
	// Does is what applying it does; unspecified: nothing, the host is like the
	// guest already.
	Does api.ChangeKind
	// Host is what stands there; nil: nothing.
	Host *share.Info
	// HostTarget is what the host's link says.
	HostTarget string
	// Warning says why it needs a yes of its own; empty: it does not.
	Warning string
	// Conflict says why it cannot be applied; empty: it can. With Stale alone
	// it can be applied over what the host has changed.
	Conflict string
	// Stale: the conflict is that the host's entry is not the one that the
	// guest's change set out from.
	Stale bool
}

// Comparison looks at entries of one store against one folder. Entries are to
// be looked at in their order.
type Comparison struct {
	root  *share.Root
	rules *rules.Set
	// kinds are of the entries of the store: a folder of the guest's may be
	// what makes place for an entry.
	kinds map[string]Kind
	// folder remembers what was found out about the last parent.
	folder, folderSays string
}

// Compare prepares looking at entries: all of a store's.
func Compare(root *share.Root, rs *rules.Set, entries []Entry) *Comparison {
	c := &Comparison{root: root, rules: rs, kinds: make(map[string]Kind, len(entries)), folder: "\x00"}
	for i := range entries {
		c.kinds[entries[i].Name] = entries[i].Kind
	}
	return c
}

// Look looks at one entry.
func (c *Comparison) Look(e *Entry) Finding {
	f := Finding{Entry: *e}
	err := c.host(&f)
	f.Does = f.does()
	if err == nil && f.Does == api.ChangeKind_CHANGE_KIND_UNSPECIFIED {
		return f
	}
	verdict := c.rules.Judge(e.Name)
	f.Warning = warning(e, verdict)
	switch {
	case e.Hidden || verdict.Hidden:
		f.Conflict = "the share hides this name"
		if verdict.Hidden {
			f.Conflict += ": " + verdict.Reason
		}
	case e.Kind == Other || !possible(e.Name):
		f.Conflict = "it is a device, a pipe or a socket, or has a name that is not UTF-8 or that the host does not take"
	case e.Kind == File && e.Blob == "":
		f.Conflict = "its content was not brought over"
		if e.Note != "" {
			f.Conflict += ": " + e.Note
		} else if e.Ignored {
			f.Conflict += ", since the host's ignore rules leave it out"
		}
	case err != nil:
		f.Conflict = "what the host has cannot be looked at: " + err.Error()
	case f.Host != nil && !ordinary(f.Host):
		f.Conflict = "the host has a device, a pipe or a socket there"
	default:
		if f.Conflict = c.wayTo(e); f.Conflict == "" {
			f.Conflict = stale(e.Base, f.Host)
			f.Stale = f.Conflict != ""
		}
		if f.Host != nil && f.Host.Mode.IsDir() && e.Kind != Folder && e.Kind != NewFolder && (f.Conflict == "" || f.Stale) {
			if other := c.unknown(e.Name); other != "" {
				f.Conflict, f.Stale = other, false
			}
		}
	}
	return f
}

// host looks at what the host has.
func (c *Comparison) host(f *Finding) (err error) {
	if !possible(f.Name) {
		return nil
	}
	if f.Host, err = lstat(c.root, f.Name); err != nil || f.Host == nil {
		return err
	}
	if f.Host.Mode.Type() == linkType {
		f.HostTarget, err = readlink(c.root, f.Name)
	}
	return err
}

// unknown names what keeps a folder of the host from going away: something in
// it that the guest has not removed, because it did not see it.
func (c *Comparison) unknown(name string) string {
	f, err := c.root.Folder(name)
	if err != nil {
		return "what the host has in it cannot be looked at: " + err.Error()
	}
	defer f.Close()
	other := ""
	err = f.Names(func(base string) bool {
		if c.kinds[name+"/"+base] != Removed {
			other = fmt.Sprintf("the host has %.200q in it, which the guest did not know", base)
		}
		return other == ""
	})
	if err != nil {
		other = "what the host has in it cannot be looked at: " + err.Error()
	}
	return other
}

// does says what applying the entry changes, as far as kinds, modes and
// targets tell. Equal files are only known by their contents.
func (f *Finding) does() api.ChangeKind {
	const nothing = api.ChangeKind_CHANGE_KIND_UNSPECIFIED
	switch {
	case f.Kind == Removed && f.Host == nil:
		return nothing
	case f.Kind == Removed:
		return api.ChangeKind_CHANGE_KIND_REMOVED
	case f.Host == nil:
		return api.ChangeKind_CHANGE_KIND_ADDED
	case f.Kind == Link && f.Host.Mode.Type() == linkType && f.Target == f.HostTarget:
		return nothing
	case (f.Kind == Folder || f.Kind == NewFolder) && f.Host.Mode.IsDir() && sameMode(f.Mode, f.Host):
		return nothing
	}
	return api.ChangeKind_CHANGE_KIND_CHANGED
}

// warning says why an entry needs a yes of its own.
func warning(e *Entry, v rules.Verdict) string {
	switch {
	case v.Protected:
		if w := rules.Warn(e.Name); w != "" {
			return w
		}
		return v.Reason
	case v.Ancestor && e.Kind != Folder && e.Kind != NewFolder:
		return v.Reason
	}
	if w := rules.Warn(e.Name); w != "" {
		return w
	}
	if e.Kind == Link && leavesFolder(e.Name, e.Target) {
		return "it is a link that leads out of the folder"
	}
	return ""
}

// leavesFolder says whether a link at name leads out of the folder, as far as
// its words tell.
func leavesFolder(name, target string) bool {
	target = strings.ReplaceAll(target, `\`, "/") // to some hosts it is the same
	if strings.HasPrefix(target, "/") || len(target) > 1 && target[1] == ':' {
		return true
	}
	to := path.Join(parent(name), target)
	return to == ".." || strings.HasPrefix(to, "../")
}

// wayTo says what keeps an entry from its place: what it is in is no folder.
func (c *Comparison) wayTo(e *Entry) string {
	in := parent(e.Name)
	if in == c.folder {
		return c.folderSays
	}
	says := ""
	for at := in; at != "" && says == ""; at = parent(at) {
		is, err := lstat(c.root, at)
		ours := c.kinds[at]
		switch {
		case err != nil:
			says = "what the host has there cannot be looked at: " + err.Error()
		case is != nil && is.Mode.IsDir() || ours == NewFolder || ours == Folder:
			// A folder that is still to be made has conflicts of its own.
		case is == nil && e.Kind != Removed:
			says = fmt.Sprintf("the folder %.200q is not there on the host", at)
		default:
			says = fmt.Sprintf("%.200q is no folder on the host", at)
		}
	}
	c.folder, c.folderSays = in, says
	return says
}

// stale says how the host's entry differs from the one that the guest knew.
func stale(base, now *share.Info) string {
	switch {
	case Unchanged(base, now):
		return ""
	case now == nil:
		return "it was removed on the host meanwhile"
	case base == nil:
		return "the host has one that the guest did not know"
	}
	return "it was changed on the host meanwhile"
}

// ordinary are the kinds that a change may take the place of.
func ordinary(is *share.Info) bool {
	return is.Mode.IsRegular() || is.Mode.IsDir() || is.Mode.Type() == linkType
}
