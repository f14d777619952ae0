package review

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/carrel-vm/carrel/guest/share"
)

// gitHost is the host's own repository: whether it has an object, and how it
// gets a new one.
type gitHost struct {
	root    *share.Root
	objects *share.Folder
	indexes []gitIndex
	known   map[gitID]gitKind // 0: it is not there
	dirty   map[string]bool
}

// gitIndex is one of the host's packs, and its index (version 2).
type gitIndex struct {
	h, pack *share.Handle
	fanout  [256]uint32
}

const maxHostPacks = 4096

func (h *gitHost) open() (err error) {
	h.known, h.dirty = map[gitID]gitKind{}, map[string]bool{}
	if err = h.mkdir(gitDir, "objects"); err != nil {
		return err
	}
	if h.objects, err = h.root.Folder(gitDir + "/objects"); err != nil {
		return err
	}
	packs, err := h.root.Folder(gitDir + "/objects/pack")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer packs.Close()
	var names []string
	if err := packs.Names(func(n string) bool {
		if strings.HasSuffix(n, ".idx") {
			names = append(names, n)
		}
		return len(names) < maxHostPacks
	}); err != nil {
		return err
	}
	for _, n := range names {
		f, _, err := packs.Open(n)
		if err != nil {
			continue // git has removed it, or it is none
		}
		pack, _, err := packs.Open(strings.TrimSuffix(n, ".idx") + ".pack")
		if err != nil {
			f.Close()
			continue
		}
		var b [indexHead]byte
		if _, err := f.ReadAt(b[:], 0); err != nil || string(b[:8]) != "\xfftOc\x00\x00\x00\x02" {
			f.Close()
			pack.Close()
			continue // what is in it counts as not there, and is written again
		}
		x := gitIndex{h: f, pack: pack}
		for i := range x.fanout {
			x.fanout[i] = binary.BigEndian.Uint32(b[8+4*i:])
		}
		h.indexes = append(h.indexes, x)
	}
	return nil
}

func (h *gitHost) close() {
	if h.objects != nil {
		h.objects.Close()
	}
	for _, x := range h.indexes {
		x.h.Close()
		x.pack.Close()
	}
}

func loosePath(id gitID) (dir, name string) {
	s := hex.EncodeToString(id[:])
	return s[:2], s[2:]
}

// has gives the type of an object that the host has, 0 if it has it not. What
// it has is taken to be whole, as git takes it.
func (h *gitHost) has(id gitID) (kind gitKind, err error) {
	if kind, is := h.known[id]; is {
		return kind, nil
	}
	if kind, err = h.loose(id); err != nil {
		return 0, err
	}
	for i := 0; i < len(h.indexes) && kind == 0; i++ {
		if at, is := h.indexes[i].find(id); is {
			kind = h.indexes[i].kind(at)
		}
	}
	h.known[id] = kind
	return kind, nil
}

func (h *gitHost) loose(id gitID) (gitKind, error) {
	dir, name := loosePath(id)
	f, err := h.root.Folder(gitDir + "/objects/" + dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	o, is, err := f.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer o.Close()
	z, err := zlib.NewReader(bufio.NewReaderSize(io.NewSectionReader(o, 0, is.Size), 512))
	if err != nil {
		return 0, fmt.Errorf("the host's object %s: %w", id, err)
	}
	word, err := bufio.NewReaderSize(z, 64).ReadString(' ')
	if err != nil {
		return 0, fmt.Errorf("the host's object %s: %w", id, err)
	}
	return kindNamed(strings.TrimSuffix(word, " "))
}

// indexHead are the bytes before the names in an index.
const indexHead = 8 + 4*256

// find gives the place of an object in the pack.
func (x *gitIndex) find(id gitID) (at int64, is bool) {
	low, high := uint32(0), x.fanout[id[0]]
	if id[0] > 0 {
		low = x.fanout[id[0]-1]
	}
	for low < high {
		mid := low + (high-low)/2
		var name gitID
		if _, err := x.h.ReadAt(name[:], indexHead+20*int64(mid)); err != nil {
			return 0, false
		}
		switch c := bytes.Compare(name[:], id[:]); {
		case c < 0:
			low = mid + 1
		case c > 0:
			high = mid
		default:
			return x.offset(int64(mid))
		}
	}
	return 0, false
}

// offset reads the tables behind the names: checksums, places of 31 bits, and
// of 63 bits for those that need them.
func (x *gitIndex) offset(n int64) (int64, bool) {
	all := int64(x.fanout[255])
	var b [8]byte
	if _, err := x.h.ReadAt(b[:4], indexHead+24*all+4*n); err != nil {
		return 0, false
	}
	at := binary.BigEndian.Uint32(b[:])
	if at>>31 == 0 {
		return int64(at), true
	}
	if _, err := x.h.ReadAt(b[:], indexHead+28*all+8*int64(at&^(1<<31))); err != nil {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(b[:]) &^ (1 << 63)), true
}

// kind is the type of the object at a place of the pack: that of what it is made
// from, if it is a delta. 0: it cannot be told, and counts as not there.
func (x *gitIndex) kind(at int64) gitKind {
	for range 10_000 {
		in := &counter{r: bufio.NewReaderSize(io.NewSectionReader(x.pack, at, 64), 64)}
		p, err := packHead(in, at)
		if err != nil {
			return 0
		}
		switch p.kind {
		case packOfsDelta:
			at = p.base
		case packRefDelta:
			var is bool
			if at, is = x.find(p.baseID); !is {
				return 0
			}
		default:
			return gitKind(p.kind)
		}
	}
	return 0
}

// tmpObject is the one temporary name that is used: git passes over it and
// removes it in time, and so does the next import.
const tmpObject = "tmp_obj_carrel"

// write writes a loose object.
func (h *gitHost) write(id gitID, kind gitKind, content []byte) error {
	if has, err := h.has(id); err != nil || has != 0 {
		return err
	}
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	fmt.Fprintf(z, "%s %d\x00", kind, len(content))
	z.Write(content)
	if err := z.Close(); err != nil {
		return err
	}
	dir, name := loosePath(id)
	if err := h.mkdir(gitDir+"/objects", dir); err != nil {
		return err
	}
	if err := h.temporary(h.objects, tmpObject, b.Bytes(), 0o444); err != nil {
		return err
	}
	crash("object")
	err := h.root.Move(gitDir+"/objects/"+tmpObject, gitDir+"/objects/"+dir+"/"+name)
	if errors.Is(err, fs.ErrExist) {
		err = h.objects.Unlink(tmpObject)
	}
	if err != nil {
		h.objects.Unlink(tmpObject)
		return err
	}
	h.known[id], h.dirty[dir] = kind, true
	return nil
}

// temporary writes a file under a temporary name.
func (h *gitHost) temporary(f *share.Folder, name string, content []byte, perm fs.FileMode) error {
	if is, err := look(f, name); err != nil {
		return err
	} else if is != nil {
		if err := drop(f, name, is); err != nil {
			return err
		}
	}
	to, err := f.Create(name, 0o600)
	if err != nil {
		return err
	}
	_, err = to.WriteAt(content, 0)
	if err == nil {
		err = errors.Join(to.Chmod(perm), to.Sync())
	}
	if err = errors.Join(err, to.Close()); err != nil {
		f.Unlink(name)
	}
	return err
}

// sync makes the names of new objects last, before a ref names them.
func (h *gitHost) sync() error {
	for dir := range h.dirty {
		f, err := h.root.Folder(gitDir + "/objects/" + dir)
		if err != nil {
			return err
		}
		err = f.Sync()
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		delete(h.dirty, dir)
	}
	return h.objects.Sync()
}

// mkdir makes a folder, unless it is there.
func (h *gitHost) mkdir(in, name string) error {
	f, err := h.root.Folder(in)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if is, err := f.Lstat(name); err != nil || !is.Mode.IsDir() {
		return fmt.Errorf("the host's %s/%s is no folder", in, name)
	}
	return nil
}

// replace puts a small file in its place at once. A name that begins with a dot
// is no ref for git.
func (h *gitHost) replace(in, name string, content []byte) error {
	const tmp = ".carrel"
	f, err := h.root.Folder(in)
	if err != nil {
		return err
	}
	defer f.Close()
	if is, err := look(f, name); err != nil {
		return err
	} else if is != nil && !is.Mode.IsRegular() {
		return fmt.Errorf("the host's %s/%s is no file", in, name)
	}
	if err := h.temporary(f, tmp, content, 0o644); err != nil {
		return err
	}
	crash("ref")
	if err := f.Replace(tmp, name); err != nil {
		f.Unlink(tmp)
		return err
	}
	return f.Sync()
}
