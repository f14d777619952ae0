package review

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The index is a line that names the format, then records in the wire form of
// protobuf (field, length, bytes), then the SHA-256 of all before it. It is
// written beside its place and renamed: there is the old one or the new one.

const (
	indexName  = "index"
	indexMagic = "carrel review 1\n"
	// maxIndex is in bytes. An import that would be larger is cut short.
	maxIndex = 256 << 20
	// maxDropped is how many names are remembered. The guest's word for what is
	// beyond is shown again.
	maxDropped = MaxEntries
)

type index struct {
	// entries are sorted by less.
	entries    []Entry
	dropped    map[string]string // stamps by name
	incomplete string
	// uncounted are ignored entries that are not among the entries.
	uncounted int
	// sum is of the file that has it; zero: none is known to.
	sum [sha256.Size]byte
}

func (i *index) drop(name, stamp string) {
	if i.dropped == nil {
		i.dropped = map[string]string{}
	}
	if len(i.dropped) < maxDropped {
		i.dropped[name] = stamp
	}
}

func (i *index) counts() Counts {
	c := Counts{Incomplete: i.incomplete, Ignored: i.uncounted}
	seen := map[string]bool{}
	for n := range i.entries {
		e := &i.entries[n]
		switch {
		case e.Hidden:
			c.Hidden++
		case e.Ignored:
			c.Ignored++
		case inGit(e.Name):
			c.Git++
		default:
			c.Changes++
		}
		if e.Blob != "" && !seen[e.Blob] {
			seen[e.Blob] = true
			c.Bytes += e.Size
		}
	}
	return c
}

// Fields of the index, of an entry and of an Info.
const (
	fieldEntry, fieldDropped, fieldIncomplete, fieldUncounted = 1, 2, 3, 4

	fieldName, fieldKind, fieldMode, fieldSize, fieldTarget, fieldMtime = 1, 2, 3, 4, 5, 6
	fieldStamp, fieldBlob, fieldBase, fieldTask, fieldFlags, fieldNote  = 7, 8, 9, 10, 11, 12
	fieldDev, fieldIno, fieldInfoSize, fieldInfoMode, fieldNlink        = 1, 2, 3, 4, 5
	fieldInfoMtime, fieldCtime                                          = 6, 7
	flagIgnored, flagHidden, flagBack                                   = 1, 2, 4
)

func appendNumber(b []byte, f protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, f, protowire.VarintType), v)
}

func appendText[T string | []byte](b []byte, f protowire.Number, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, f, protowire.BytesType), []byte(v))
}

func appendEntry(b []byte, e *Entry) []byte {
	b = appendText(b, fieldName, e.Name)
	b = appendNumber(b, fieldKind, uint64(e.Kind))
	b = appendNumber(b, fieldMode, uint64(e.Mode))
	b = appendNumber(b, fieldSize, uint64(e.Size))
	b = appendText(b, fieldTarget, e.Target)
	if !e.Mtime.IsZero() {
		b = appendNumber(b, fieldMtime, protowire.EncodeZigZag(e.Mtime.UnixNano()))
	}
	b = appendText(b, fieldStamp, e.Stamp)
	b = appendText(b, fieldBlob, e.Blob)
	if e.Base != nil {
		f := factOf(e.Base)
		is := make([]byte, 0, 64)
		is = appendNumber(is, fieldDev, f.dev)
		is = appendNumber(is, fieldIno, f.ino)
		is = appendNumber(is, fieldInfoSize, uint64(f.size))
		is = appendNumber(is, fieldInfoMode, uint64(f.mode))
		is = appendNumber(is, fieldNlink, uint64(f.nlink))
		is = appendNumber(is, fieldInfoMtime, uint64(f.mtime))
		is = appendNumber(is, fieldCtime, uint64(f.ctime))
		b = protowire.AppendBytes(protowire.AppendTag(b, fieldBase, protowire.BytesType), is)
	}
	b = appendText(b, fieldTask, e.Task)
	var flags uint64
	if e.Ignored {
		flags |= flagIgnored
	}
	if e.Hidden {
		flags |= flagHidden
	}
	if e.Back {
		flags |= flagBack
	}
	b = appendNumber(b, fieldFlags, flags)
	return appendText(b, fieldNote, e.Note)
}

// fields calls take for each field of a message. Numbers and texts are all that
// there is.
func fields(b []byte, take func(f protowire.Number, num uint64, text []byte) error) error {
	for len(b) > 0 {
		f, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var num uint64
		var text []byte
		switch kind {
		case protowire.VarintType:
			num, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			text, n = protowire.ConsumeBytes(b)
		default:
			return fmt.Errorf("a field of wire type %d", kind)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := take(f, num, text); err != nil {
			return err
		}
	}
	return nil
}

func parseEntry(b []byte) (e Entry, err error) {
	err = fields(b, func(f protowire.Number, num uint64, text []byte) error {
		switch f {
		case fieldName:
			e.Name = string(text)
		case fieldKind:
			e.Kind = Kind(min(num, 255))
		case fieldMode:
			e.Mode = uint32(min(num, 1<<16))
		case fieldSize:
			e.Size = int64(num)
		case fieldTarget:
			e.Target = string(text)
		case fieldMtime:
			e.Mtime = time.Unix(0, protowire.DecodeZigZag(num))
		case fieldStamp:
			e.Stamp = string(text)
		case fieldBlob:
			e.Blob = string(text)
		case fieldBase:
			is, err := parseFact(text)
			if err != nil {
				return err
			}
			info := is.info()
			e.Base = &info
		case fieldTask:
			e.Task = string(text)
		case fieldFlags:
			e.Ignored, e.Hidden, e.Back = num&flagIgnored != 0, num&flagHidden != 0, num&flagBack != 0
		case fieldNote:
			e.Note = string(text)
		}
		return nil
	})
	if err == nil {
		err = e.check()
	}
	return e, err
}

func parseFact(b []byte) (f fact, err error) {
	err = fields(b, func(n protowire.Number, num uint64, _ []byte) error {
		switch n {
		case fieldDev:
			f.dev = num
		case fieldIno:
			f.ino = num
		case fieldInfoSize:
			f.size = int64(num)
		case fieldInfoMode:
			f.mode = uint32(num)
		case fieldNlink:
			f.nlink = uint32(num)
		case fieldInfoMtime:
			f.mtime = int64(num)
		case fieldCtime:
			f.ctime = int64(num)
		}
		return nil
	})
	return f, err
}

// check says whether an entry may be in an index.
func (e *Entry) check() error {
	if err := goodName(e.Name); err != nil {
		return fmt.Errorf("the name %.100q %w", e.Name, err)
	}
	switch {
	case e.Kind < File || e.Kind > Other:
		return errors.New("an unknown kind")
	case e.Mode&^0o777 != 0:
		return errors.New("bits beside the permissions")
	case e.Size < 0:
		return errors.New("a negative size")
	case len(e.Target) > maxTarget || (e.Kind == Link) != (e.Target != "") && !e.Hidden:
		return errors.New("an impossible target")
	case e.Blob != "" && (e.Kind != File || !isSum(e.Blob)):
		return errors.New("an impossible content")
	}
	return nil
}

func isSum(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && hex.EncodeToString(b) == s
}

// marshal makes the same bytes of what is the same, and notes their sum.
func (i *index) marshal() []byte {
	b := []byte(indexMagic)
	var one []byte
	for n := range i.entries {
		one = appendEntry(one[:0], &i.entries[n])
		b = protowire.AppendBytes(protowire.AppendTag(b, fieldEntry, protowire.BytesType), one)
	}
	for _, name := range slices.Sorted(maps.Keys(i.dropped)) {
		one = appendText(appendText(one[:0], fieldName, name), fieldStamp, i.dropped[name])
		b = protowire.AppendBytes(protowire.AppendTag(b, fieldDropped, protowire.BytesType), one)
	}
	b = appendText(b, fieldIncomplete, i.incomplete)
	b = appendNumber(b, fieldUncounted, uint64(i.uncounted))
	i.sum = sha256.Sum256(b)
	return append(b, i.sum[:]...)
}

// parseIndex returns known if the bytes are the same.
func parseIndex(b []byte, known *index) (index, error) {
	body, ok := bytes.CutPrefix(b, []byte(indexMagic))
	if !ok || len(body) < sha256.Size {
		return index{}, errors.New("it is no index")
	}
	end := len(b) - sha256.Size
	sum := sha256.Sum256(b[:end])
	if !bytes.Equal(sum[:], b[end:]) {
		return index{}, errors.New("its sum is another")
	}
	if sum == known.sum {
		return *known, nil
	}
	i, err := parseRecords(body[:len(body)-sha256.Size])
	i.sum = sum
	return i, err
}

func parseRecords(b []byte) (index, error) {
	var i index
	err := fields(b, func(f protowire.Number, num uint64, text []byte) error {
		switch f {
		case fieldEntry:
			e, err := parseEntry(text)
			if err != nil {
				return err
			}
			if n := len(i.entries); n > 0 && less(i.entries[n-1].Name, e.Name) >= 0 {
				return fmt.Errorf("%.100q is out of order", e.Name)
			}
			if len(i.entries) >= MaxEntries+maxIgnored {
				return fmt.Errorf("more than %d entries", MaxEntries+maxIgnored)
			}
			i.entries = append(i.entries, e)
		case fieldDropped:
			var name, stamp string
			if err := fields(text, func(f protowire.Number, _ uint64, text []byte) error {
				switch f {
				case fieldName:
					name = string(text)
				case fieldStamp:
					stamp = string(text)
				}
				return nil
			}); err != nil {
				return err
			}
			i.drop(name, stamp)
		case fieldIncomplete:
			i.incomplete = string(text)
		case fieldUncounted:
			i.uncounted = int(min(num, maxListed))
		}
		return nil
	})
	return i, err
}

// readIndex reads the index as it is now. known is one that was read before, or
// written, and is returned if it is the file's still: taking one apart takes
// longer than its sum.
func (s *Store) readIndex(known *index) (index, error) {
	f, err := openOwn(s.root, indexName, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return index{}, nil
	}
	if err != nil {
		return index{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return index{}, err
	}
	if len(b) > maxIndex {
		return index{}, fmt.Errorf("%w: its index has more than %d bytes", ErrDamaged, maxIndex)
	}
	i, err := parseIndex(b, known)
	if err != nil {
		return index{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return i, nil
}

// writeIndex puts an index in the place of the one that has the sum was, unless
// it is the same.
func (s *Store) writeIndex(i *index, was [sha256.Size]byte) error {
	slices.SortFunc(i.entries, func(a, b Entry) int { return less(a.Name, b.Name) })
	b := i.marshal()
	if i.sum == was {
		return nil
	}
	if err := s.replace(indexName, b); err != nil {
		i.sum = [sha256.Size]byte{}
		return fmt.Errorf("write the review in %s: %w", s.dir, err)
	}
	return nil
}
