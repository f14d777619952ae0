// Package review keeps what a guest has changed in a layer over a shared
// folder, shows it, and brings into the folder what a person or a program has
// said yes to. All of it is the guest's word: names, kinds and contents are
// bounded and checked when they come in, and once more when they go out.
//
// Three processes use a store, one at a time for each part of it:
//
//	share process    notes what was served (the base), imports change sets and
//	                 keeps pre-images of live shares
//	review process   shows, applies, discards and undoes; it is started for one
//	                 request, with the folder and the store and nothing else
//	daemon           makes and removes the folder of a store, and reads nothing
package review

import (
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// Kind is what an entry is.
type Kind uint8

// Kinds. The zero value is none of them.
const (
	File Kind = iota + 1
	// Folder is a folder that both have, with other permissions in the guest. One
	// that is only on the way to a change is no entry.
	Folder
	// NewFolder is a folder where the host had none: nothing, or something else.
	NewFolder
	Link
	// Removed: the guest has removed what the host has. Of a removed folder each
	// entry below it that the guest knew has an entry of its own, so that what it
	// did not know stays, and the folder with it.
	Removed
	// Other is a device, a pipe or a socket. It is shown and never applied.
	Other
)

// Entry is one entry of a change set.
type Entry struct {
	// Name is relative to the share's root: clean, its parts joined with '/'.
	Name string
	Kind Kind
	// Mode are permission bits, 0-0777.
	Mode uint32
	// Size is in bytes.
	Size int64
	// Target is where a Link points.
	Target string
	// Mtime is the guest's word, for people to see.
	Mtime time.Time
	// Stamp differs when the entry may have changed since an earlier import. It
	// is empty for what went with its folder.
	Stamp string
	// Blob names the content of a File in the store (hex SHA-256, taken on the
	// host); empty: it was not brought over, and Note says why.
	Blob string
	// Base is the host's entry as it was first served; nil: there was none, or
	// it is not known.
	Base *share.Info
	// Task is the id of the task after which the entry was first seen.
	Task string
	// Ignored says that the host's ignore rules leave the entry out.
	Ignored bool
	// Hidden says that the share's rules hide the name: the entry is shown as
	// refused, has no content and is never applied.
	Hidden bool
	// Back says that an undo has brought the entry back into the review: the guest
	// has let go of it, and tells it no more.
	Back bool
	// Note is why a File has no Blob, where neither Ignored nor Hidden says it.
	Note string
}

// Counts are of a store's entries.
type Counts struct {
	// Changes are entries that people are shown. Those with .git in their name
	// are apart: Git counts them.
	Changes, Git int
	// Ignored are entries that the host's ignore rules leave out, and Hidden
	// those that are refused for their name.
	Ignored, Hidden int
	// Bytes are of the contents in the store.
	Bytes int64
	// Incomplete says why there is more than the entries tell ("more than
	// 200000 changes"); empty: there is not.
	Incomplete string
}

// Bounds of a change set.
const (
	MaxEntries = 200_000
	// MaxBytes is how much content one store takes.
	MaxBytes = 8 << 30
	// MaxName is in bytes, MaxDepth in parts.
	MaxName, MaxDepth = 4095, 128
	// maxPart is one part of a name, maxTarget what a link says, in bytes.
	maxPart, maxTarget = 255, 4095
	// maxStamp and maxTask are in bytes.
	maxStamp, maxTask = 128, 64
)

// Unchanged says whether the host's entry is still the one that was served.
// Either may be nil: nothing is there. A folder is the same one whatever has
// come and gone in it.
func Unchanged(base, now *share.Info) bool {
	switch {
	case base == nil || now == nil:
		return base == now
	case base.Mode.IsDir() && now.Mode.IsDir():
		return base.Dev == now.Dev && base.Ino == now.Ino && base.Mode == now.Mode
	}
	return base.Same(*now)
}
