package review

import (
	"crypto/sha256"
	"fmt"

	"github.com/carrel-vm/carrel/guest/share"
)

// A guest that runs goes on while a person looks at what it has changed, and an
// import may come between that look and the yes. So each change is shown with
// what tells it from every other, and a yes can be given to that alone.

// seenSize is in bytes. What a guest would have to find is two contents of which
// the sums begin alike.
const seenSize = 20

// seen is what tells an entry from every other of any share, and from what it
// was or will be itself. It has nothing in it that a second import of the same
// change would make another.
func (e *Entry) seen(root *share.Root) []byte {
	b := appendText(nil, 1, root.Path())
	sum := sha256.Sum256(appendEntry(b, &Entry{Name: e.Name, Kind: e.Kind, Mode: e.Mode, Size: e.Size, Target: e.Target, Blob: e.Blob}))
	return sum[:seenSize]
}

const unseen = "it came, or was changed again, after somebody looked at the changes (look again: carrel diff)"

// parseSeen takes apart what a request has of them.
func parseSeen(b []byte) (map[string]bool, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b)%seenSize != 0 {
		return nil, &Error{Code: "bad_request", Cause: fmt.Sprintf("what was seen has %d bytes, and each of them %d", len(b), seenSize)}
	}
	all := make(map[string]bool, len(b)/seenSize)
	for ; len(b) > 0; b = b[seenSize:] {
		all[string(b[:seenSize])] = true
	}
	return all, nil
}

func (a *applier) wasSeen(e *Entry) bool {
	return a.opts.Seen == nil || a.opts.Seen[string(e.seen(a.Root))]
}

// nothing says that there is nothing to be seen of an entry: the host has the
// same.
func (a *applier) nothing(looks *Comparison, e *Entry) bool {
	f := looks.Look(e)
	c, err := a.Store.changeOf(a.Root, &f, DiffOptions{NoText: true})
	return err == nil && c == nil
}
