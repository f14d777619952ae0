package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of a list of changes. The host has its own.
const (
	maxChanges = 1_000_000
	// maxChangeNames is what the list's names may have in all, in bytes.
	maxChangeNames = 64 << 20
	// maxChangeDepth is how many parts a name may have.
	maxChangeDepth = 128
)

// racy is how old a change must be to be told from the next: two within one tick
// of the kernel's clock have the same time. Only a test sets it, for a machine
// that is too slow to look so soon.
var racy = 100 * time.Millisecond

// changes is the list of one layer's changes: the entries of its upper folder
// (filesystems/overlayfs.rst). It keeps of each what finds it again, and
// nothing else.
type changes struct {
	// notes is what the names of the kernel's notes begin with.
	notes string
	// forgotten says when the removal of a name was last forgotten, or 0.
	forgotten func(name string) int64
	// send takes each entry as it is found.
	send func(*wire.Changed) error

	names   []byte // every entry's own name, one after the other
	entries []changed
}

// changed is where an entry's name ends in names, and the folder that it is in.
type changed struct {
	end    uint32
	parent int32 // -1: the share's own
	kind   wire.ChangedType
	is     identity
}

// identity tells an entry from what has taken its place, or its content's.
type identity struct {
	ino   uint64
	size  int64
	mtime int64
	mode  uint32
}

func identify(st *unix.Stat_t) identity {
	if whiteout(st) {
		return identity{mode: st.Mode} // the kernel links one for all
	}
	return identity{st.Ino, st.Size, st.Mtim.Nano(), st.Mode}
}

// whiteout says whether an entry stands for one of the host's that the guest
// has removed.
func whiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// list sends what the upper folder holds, parents first. lower is what is under
// the layer.
func (l *changes) list(upper, lower int) error {
	fd, err := unix.Openat(upper, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the layer: %w", err)
	}
	return l.folder(os.NewFile(uintptr(fd), "layer"), &below{fd: lower, open: true}, "", -1, 0)
}

// below is a folder of the host's that one of the layer's is laid over. It is
// asked for only if something in it is: each look at it is the host's to answer.
type below struct {
	in   *below
	base string
	fd   int
	open bool
	err  error
}

// at opens the folder.
func (b *below) at() (int, error) {
	if !b.open && b.err == nil {
		if b.fd, b.err = b.in.at(); b.err == nil {
			b.fd, b.err = unix.Openat(b.fd, b.base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
		b.open = b.err == nil
	}
	return b.fd, b.err
}

// close lets go of it; not of the one that list was given.
func (b *below) close() {
	if b != nil && b.in != nil && b.open {
		b.open = false
		_ = unix.Close(b.fd)
	}
}

// folder sends what is in dir, and closes it. lower is the host's folder that it
// is laid over, or nil: it hides that, or there is none.
func (l *changes) folder(dir *os.File, lower *below, name string, at int32, depth int) error {
	defer dir.Close()
	for {
		bases, err := dir.Readdirnames(256)
		for _, base := range bases {
			full := base
			if name != "" {
				full = name + "/" + base
			}
			if err := l.entry(int(dir.Fd()), lower, base, full, at, depth); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the layer's folder %.200q: %w", name, err)
		}
	}
}

func (l *changes) entry(dir int, lower *below, base, name string, parent int32, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // a task runs
	}
	if err != nil {
		return fmt.Errorf("look at the layer's %.200q: %w", name, err)
	}
	c := &wire.Changed{Name: name, Mode: st.Mode & 0o777, MtimeNanos: st.Mtim.Nano(), Stamp: stamp(&st)}
	sub, under := -1, (*below)(nil)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		c.Type, c.Size = wire.ChangedType_CHANGED_TYPE_REGULAR, st.Size
	case unix.S_IFDIR:
		// One whose children's names would be too long to be sent, or to be
		// opened again, is shown and not entered.
		if depth+1 >= maxChangeDepth || len(name)+1+unix.NAME_MAX >= maxName || !utf8.ValidString(base) {
			c.Type = wire.ChangedType_CHANGED_TYPE_OTHER
			break
		}
		sub, err = unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open the layer's folder %.200q: %w", name, err)
		}
		c.Type = wire.ChangedType_CHANGED_TYPE_NEW_DIRECTORY
		// The kernel makes a note only where there is something to hide.
		if lower != nil && !opaque(sub, l.notes) {
			under = &below{in: lower, base: base}
			// Another note says that it was made for one of the host's. Without it
			// the host may have made one since, which is seen through this one.
			if !copied(sub, l.notes) {
				_, err = under.at()
			}
			switch {
			case err == nil:
				c.Type = wire.ChangedType_CHANGED_TYPE_DIRECTORY
				defer under.close()
			case absent(err):
				under = nil
			default:
				_ = unix.Close(sub)
				return fmt.Errorf("look at the share's folder %.200q under the layer: %w", name, err)
			}
		}
	case unix.S_IFLNK:
		c.Type = wire.ChangedType_CHANGED_TYPE_SYMLINK
		if c.Target, err = readlink(dir, base); err != nil {
			return fmt.Errorf("read the layer's link %.200q: %w", name, err)
		}
		if !utf8.ValidString(c.Target) {
			c.Type, c.Target = wire.ChangedType_CHANGED_TYPE_OTHER, ""
		}
	default:
		c.Type = wire.ChangedType_CHANGED_TYPE_OTHER
		if whiteout(&st) {
			// It has no time of its own.
			c.Type, c.Mode, c.MtimeNanos = wire.ChangedType_CHANGED_TYPE_REMOVED, 0, 0
			c.Stamp = binary.LittleEndian.AppendUint64(nil, uint64(l.forgotten(name)))
		}
	}
	if c.Name = visible(name); c.Name != name {
		c.Type, c.Size = wire.ChangedType_CHANGED_TYPE_OTHER, 0
	}
	at, err := l.add(base, parent, c.Type, identify(&st))
	if err == nil {
		err = l.send(c)
	}
	switch {
	case sub < 0:
		return err
	case err != nil:
		_ = unix.Close(sub)
		return err
	}
	return l.folder(os.NewFile(uintptr(sub), base), under, name, at, depth+1)
}

func (l *changes) add(base string, parent int32, kind wire.ChangedType, is identity) (int32, error) {
	if len(l.entries) >= maxChanges || len(l.names)+len(base) > maxChangeNames {
		return 0, fmt.Errorf("the guest has changed more than %d entries, which is the limit of a review (copy out what is needed: carrel cp)", len(l.entries))
	}
	l.names = append(l.names, base...)
	l.entries = append(l.entries, changed{uint32(len(l.names)), parent, kind, is})
	return int32(len(l.entries) - 1), nil
}

// name is the name of an entry by its place in the list.
func (l *changes) name(index int32) string {
	var parts []string
	for i := index; i >= 0; i = l.entries[i].parent {
		begin := uint32(0)
		if i > 0 {
			begin = l.entries[i-1].end
		}
		parts = append(parts, string(l.names[begin:l.entries[i].end]))
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteString(parts[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String()
}

// opaque says whether a folder of a layer hides what the host has there.
func opaque(fd int, notes string) bool {
	var b [2]byte
	n, err := unix.Fgetxattr(fd, notes+"opaque", b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// copied says whether a folder of a layer was made for one that the host had,
// rather than by the guest alone: the note is there, and may be empty
// (ovl_get_origin_fh, fs/overlayfs/copy_up.c).
func copied(fd int, notes string) bool {
	_, err := unix.Fgetxattr(fd, notes+"origin", nil)
	return err == nil
}

// stamp differs when the entry does. One that changed just now gets a stamp
// that it will not have again.
func stamp(st *unix.Stat_t) []byte {
	b := make([]byte, 0, 40)
	for _, n := range []uint64{st.Ino, uint64(st.Size), uint64(st.Mtim.Nano()), uint64(st.Ctim.Nano())} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	if now := time.Now().UnixNano(); now-st.Ctim.Nano() < int64(racy) {
		b = binary.LittleEndian.AppendUint64(b, uint64(now))
	}
	return b
}

func readlink(dir int, base string) (string, error) {
	b := make([]byte, maxName+1)
	n, err := unix.Readlinkat(dir, base, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// visible writes the bytes of a name that are not UTF-8 as \xNN.
func visible(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, name[i])
		} else {
			b.WriteString(name[i : i+n])
		}
		i += n
	}
	return b.String()
}
