package review

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// ErrGuest means that what a guest sent is no list of changes. Nothing of it was
// taken.
var ErrGuest = errors.New("the guest's list of changes breaks the rules")

// ErrImporting means that another import of the same store is under way.
var ErrImporting = errors.New("the changes are being imported already")

// ImportOptions say what a change set is compared with, and bound it.
type ImportOptions struct {
	Root  *share.Root
	Rules *rules.Set
	// Base is what was served; nil: nothing is known, and every change of what
	// the host has is a conflict.
	Base *Base
	// Task is the id of the task that has ended; "" for none.
	Task string
	// Ignored takes the contents of what the host's ignore rules leave out, too.
	Ignored bool
	// Bounds; 0: MaxEntries, MaxBytes, and MaxFile for one file.
	MaxEntries        int
	MaxBytes, MaxFile int64
}

const (
	// MaxFile is how much content one file may have.
	MaxFile = 2 << 30
	// importTime is how long an import takes at most if its context does not
	// say.
	importTime = 10 * time.Minute
	// maxListed is how many entries, and bytes of names, are read of a list. The
	// agent ends a list before that.
	maxListed, maxListedBytes = 1<<20 + 1, 128 << 20
	// maxIgnored is how many entries are kept of what is ignored. The others
	// are counted.
	maxIgnored = 50_000
	// maxKeptBytes is how many bytes of names and targets an index takes, so
	// that it stays below maxIndex.
	maxKeptBytes = maxIndex / 4
)

func (o ImportOptions) withDefaults() ImportOptions {
	if o.MaxEntries == 0 {
		o.MaxEntries = MaxEntries
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = MaxBytes
	}
	if o.MaxFile == 0 {
		o.MaxFile = MaxFile
	}
	if len(o.Task) > maxTask {
		o.Task = o.Task[:maxTask]
	}
	return o
}

// importer is one import. It goes in these steps:
//
//  1. the list is read and judged, entry by entry
//  2. what went with a folder is made into entries, from the base
//  3. contents are asked for
//  4. the new index takes the place of the old one
//  5. the guest is told what was applied or discarded, and lets go of it
type importer struct {
	ImportOptions
	s      *Store
	in     *wire.Reader
	out    io.Writer
	ignore *ignorer
	old    map[string]*Entry
	// dropped are the names and stamps that an index remembered at the start.
	dropped map[string]string

	seed maphash.Seed
	// seen has every name of the list, as a hash: there may be a million.
	seen    map[uint64]Kind
	listed  uint32
	bytes   int // of names that were listed
	kept    []kept
	keptLen int // bytes of names that are kept
	// replaced are folders of the host in whose place the guest has something
	// else: what it does not list below them is gone.
	replaced map[string]bool
	// implied are names that went with their folder and were dropped.
	implied map[string]bool
	// anew are folders that hide what the host has below them from the guest.
	anew map[string]bool
	// held are listed entries that were dropped.
	held       map[string]bool
	left       [2]int // how many more are kept: of entries, and of those ignored
	uncounted  int
	incomplete string
	// whole: the list came to its end.
	whole bool
	// began is the sum of the index at the start, fetched how many contents were
	// asked for.
	began   [sha256.Size]byte
	fetched int
	// mute: the stream is in the midst of something, and of no use any more.
	mute bool
}

// kept is an entry of the new index.
type kept struct {
	Entry
	index uint32
	host  *share.Info
}

// Import reads what the guest has changed from conn, which begins with the
// first answer to Call{review}, and makes it the store's change set, entirely
// or not at all. conn is closed when ctx ends, if it can be.
//
// What the guest changed beyond the bounds, or did not send in time, is said in
// Counts.Incomplete and is no error. A guest that breaks the rules is ErrGuest.
func (s *Store) Import(ctx context.Context, conn io.ReadWriter, o ImportOptions) (Counts, error) {
	unlock, got, err := s.lock("importing", false)
	if err != nil {
		return Counts{}, err
	}
	if !got {
		return Counts{}, ErrImporting
	}
	defer unlock()
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, importTime)
		defer cancel()
	}
	if c, ok := conn.(io.Closer); ok {
		defer context.AfterFunc(ctx, func() { c.Close() })()
	}
	im := s.importer(conn, o)
	if err := im.run(ctx); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("the guest did not answer in time: %w", context.Cause(ctx))
		}
		return Counts{}, fmt.Errorf("import the changes of %s: %w", o.Root.Path(), err)
	}
	s.mu.Lock()
	same := s.swept && s.idx.sum == im.began && im.fetched == 0
	s.mu.Unlock()
	if !same {
		if err := s.sweepAlone(); err != nil {
			return Counts{}, err
		}
		s.swept = true // only an import looks, and there is one at a time
	}
	return s.Counts(), nil
}

func (s *Store) importer(conn io.ReadWriter, o ImportOptions) *importer {
	if err := s.Reload(); err != nil {
		// A damaged index is made anew. What it remembered is shown again.
		s.mu.Lock()
		s.idx = index{}
		s.mu.Unlock()
	}
	im := &importer{
		ImportOptions: o.withDefaults(), s: s, in: wire.NewReader(conn), out: conn, ignore: newIgnorer(o.Root),
		old: map[string]*Entry{}, dropped: map[string]string{}, seed: maphash.MakeSeed(), seen: map[uint64]Kind{},
		replaced: map[string]bool{}, implied: map[string]bool{}, held: map[string]bool{}, anew: map[string]bool{},
	}
	im.left = [2]int{im.MaxEntries, min(maxIgnored, im.MaxEntries)}
	for _, e := range s.Entries() {
		im.old[e.Name] = &e
	}
	s.mu.Lock()
	im.began = s.idx.sum
	for name, stamp := range s.idx.dropped {
		im.dropped[name] = stamp
	}
	s.mu.Unlock()
	return im
}

func (im *importer) run(ctx context.Context) error {
	if im.Base != nil {
		// What was served so far is as durable as what follows from it.
		if err := im.Base.Sync(); err != nil {
			return fmt.Errorf("write the base: %w", err)
		}
	}
	if err := im.list(); err != nil {
		return err
	}
	im.imply()
	alive, err := im.contents(ctx)
	if err != nil {
		return err
	}
	if err := im.commit(); err != nil {
		return err
	}
	if im.Base != nil && im.whole {
		if err := im.Base.Settle(im.touched); err != nil {
			return err
		}
	}
	if !alive {
		return nil
	}
	return im.tell()
}

// sameStamp says whether an entry is still the one that was dropped with a stamp. An
// entry that was listed within a moment of its change has a longer stamp at
// that time (agent/changes_linux.go), and is the same one later.
func sameStamp(dropped, stamp string) bool {
	return dropped == stamp || stamp != "" && strings.HasPrefix(dropped, stamp)
}

// commit replaces the index. What another process dropped since the import has
// begun stays dropped.
func (im *importer) commit() error {
	return im.s.replaceIndex(im.merge, true)
}

func (im *importer) merge(idx *index) {
	next := index{incomplete: im.incomplete, uncounted: im.uncounted}
	for i := range im.kept {
		e := im.kept[i].Entry
		if stamp, ok := idx.dropped[e.Name]; ok && sameStamp(stamp, e.Stamp) {
			continue
		}
		next.entries = append(next.entries, e)
	}
	im.keepBack(idx, &next)
	if !im.whole { // what the list did not come to is as it was
		for _, e := range idx.entries {
			if _, listed := im.seen[im.hash(e.Name)]; !listed && e.Stamp != "" && !e.Back && len(next.entries) < MaxEntries {
				next.entries = append(next.entries, e)
			}
		}
	}
	for name, stamp := range idx.dropped {
		was, known := im.dropped[name]
		if !im.whole || !known || was != stamp || im.held[name] || im.implied[name] {
			next.drop(name, stamp)
		}
	}
	*idx = next
}

// keepBack keeps what an undo has brought back, and the guest does not know: it
// is not in its list, unless it has made something of that name since, or of a
// folder that it is in.
func (im *importer) keepBack(idx, next *index) {
	var told map[string]Kind
	for _, e := range idx.entries {
		if !e.Back || len(next.entries) >= MaxEntries {
			continue
		}
		if told == nil {
			told = make(map[string]Kind, len(next.entries))
			for n := range next.entries {
				told[next.entries[n].Name] = next.entries[n].Kind
			}
		}
		_, newer := told[e.Name]
		for at := parent(e.Name); at != "" && !newer; at = parent(at) {
			kind, has := told[at]
			newer = has && kind != Folder && kind != NewFolder
		}
		if !newer {
			next.entries = append(next.entries, e)
		}
	}
}

// touched says whether the guest has changed an entry, or what it is in.
func (im *importer) touched(name string) bool {
	if _, listed := im.seen[im.hash(name)]; listed || len(im.replaced) == 0 {
		return listed
	}
	for at := parent(name); at != ""; at = parent(at) {
		if im.replaced[at] {
			return true
		}
	}
	return false
}

func (im *importer) hash(name string) uint64 { return maphash.String(im.seed, name) }

// maxTell is how many bytes of names one Drop has.
const maxTell = 256 << 10

// letGo are the names of which the guest may forget its changes, since it has
// the host's then: not in a folder that goes on hiding the host's. Such a folder
// may go itself when nothing below it is left in the review.
func (im *importer) letGo() (names []string) {
	left := map[string]bool{}
	for i := range im.kept {
		for at := im.kept[i].Name; at != "" && !left[at]; at = parent(at) {
			left[at] = true
		}
	}
	may := maps.Clone(im.held)
	for name := range im.anew {
		if im.whole && im.replaced[name] && !left[name] {
			may[name] = true
		}
	}
	for name := range may {
		hidden := false
		for at := parent(name); at != "" && !hidden; at = parent(at) {
			hidden = im.anew[at] && !may[at]
		}
		if !hidden {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, less)
	return names
}

// tell lets the guest forget what was dropped. It is not needed for anything
// that the host does: a guest that does not answer stays as it is.
func (im *importer) tell() error {
	names := im.letGo()
	for len(names) > 0 {
		n, size := 0, 0
		for n < len(names) && size < maxTell {
			size += len(names[len(names)-1-n]) + 8
			n++
		}
		// What is in a folder comes before it.
		some := names[len(names)-n:]
		drop := &wire.Reviewing{Kind: &wire.Reviewing_Drop{Drop: &wire.Drop{Names: some}}}
		var m wire.Reviewed
		if wire.Write(im.out, drop) != nil || im.in.Read(&m) != nil || m.GetDone() == nil || m.GetDone().Error != "" {
			return nil
		}
		if err := im.s.Forget(some); err != nil {
			return err
		}
		if im.Base != nil {
			im.Base.letGo(some)
		}
		names = names[:len(names)-n]
	}
	return nil
}
