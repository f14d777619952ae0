package oci

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
)

// The names by which a layer takes away what lower layers have (image-spec, layer.md, "Whiteouts").
const (
	whiteout     = ".wh."
	whiteoutMeta = ".wh..wh." // aufs kept its own files under such names; they are no one's content
	opaque       = ".wh..wh..opq"
)

// apply puts one entry of a layer into the tree. content is read only for a regular file.
func (t *tree) apply(h *tar.Header, content io.Reader) error {
	if err := t.count(); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeGNUSparse {
		h.Typeflag = tar.TypeReg // the reader has filled its holes
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // git archive and others put a comment there
	}
	parent, base, err := split(h.Name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteout) {
		return t.whiteout(parent, base)
	}
	n, err := t.inode(h)
	if err != nil {
		return err
	}
	if base == "" { // the root itself
		if !n.isDir() {
			return fmt.Errorf("%w: the root is not a directory", ErrMalformed)
		}
		t.setDir(0, n)
		return nil
	}
	dir, err := t.dir(parent, true)
	if err != nil {
		return err
	}
	old := t.lookup(dir, base)
	switch h.Typeflag {
	case tar.TypeLink:
		return t.hardlink(dir, base, old, h.Linkname)
	case tar.TypeDir:
		if old != nil && t.inodes.at(old.ino).isDir() {
			old.layer = t.layer
			t.setDir(old.ino, n)
			return nil
		}
	case tar.TypeReg:
		n.off, n.size = t.spool.end, h.Size
		// A sparse file is long in the spool and short in the tar, so the tar's own ratio does not see it.
		if h.Size > t.most-t.spool.end || h.Size > t.spool.max-t.spool.end {
			return fmt.Errorf("%w: a file of %d bytes", ErrTooBig, h.Size)
		}
		// Written before the name is given, so that a limit leaves no half file in the tree.
		if k, err := io.CopyBuffer(t.spool, content, t.buf); err != nil {
			return err
		} else if k != h.Size {
			return fmt.Errorf("%w: %d bytes of contents, its header says %d", ErrMalformed, k, h.Size)
		}
	case tar.TypeSymlink:
		n.off, n.size = t.spool.end, int64(len(h.Linkname))
		if _, err := io.WriteString(t.spool, h.Linkname); err != nil {
			return err
		}
	}
	if old != nil {
		t.drop(old)
	}
	_, err = t.add(dir, base, n)
	return err
}

// split checks a path of a layer and parts its last name from the rest. Nothing is repaired: a path
// that is absolute, has "..", NUL or is too long fails the image. A backslash, a colon or a
// drive letter is a byte like any other (systemd has file names with \x2d), since no path of
// an image is ever a path of the host.
func split(path string) (parent, base string, err error) {
	switch {
	case len(path) > maxPath:
		return "", "", fmt.Errorf("%w: a path of %d bytes", ErrMalformed, len(path))
	case strings.IndexByte(path, 0) >= 0:
		return "", "", fmt.Errorf("%w: NUL in a path", ErrMalformed)
	case path == "/": // how some builders name the root
		return "", "", nil
	case path == "":
		return "", "", fmt.Errorf("%w: an entry without a name", ErrMalformed)
	case path[0] == '/':
		return "", "", fmt.Errorf("%w: the path %q is absolute", ErrMalformed, clip(path))
	}
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			return "", "", fmt.Errorf("%w: the path %q has a \"..\"", ErrMalformed, clip(path))
		case len(name) > maxName:
			return "", "", fmt.Errorf("%w: a name of %d bytes", ErrMalformed, len(name))
		}
		names = append(names, name)
	}
	if len(names) > maxDepth {
		return "", "", fmt.Errorf("%w: more than %d directories deep", ErrTooBig, maxDepth)
	}
	if len(names) == 0 {
		return "", "", nil
	}
	last := len(names) - 1
	return strings.Join(names[:last], "/"), names[last], nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

func (t *tree) whiteout(parent, base string) error {
	hidden := base[len(whiteout):]
	if base != opaque {
		if strings.HasPrefix(base, whiteoutMeta) {
			return nil
		}
		if hidden == "" || hidden == "." || hidden == ".." {
			return fmt.Errorf("%w: a whiteout of %q", ErrMalformed, hidden)
		}
	}
	dir, err := t.dir(parent, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing there to hide
	} else if err != nil {
		return err
	}
	if base == opaque {
		t.hideBelow(dir)
	} else if d := t.lookup(dir, hidden); d != nil {
		t.hide(d)
	}
	return nil
}

// hardlink gives a file one more name. Its other name must be there already, and is found as a
// path of the image like any other.
func (t *tree) hardlink(dir uint32, base string, old *dirent, target string) error {
	parent, name, err := split(target)
	if err != nil {
		return fmt.Errorf("a hard link's target: %w", err)
	}
	missing := fmt.Errorf("%w: a hard link to %q, which is not there", ErrMalformed, clip(target))
	if name == "" {
		return missing
	}
	from, err := t.dir(parent, false)
	if errors.Is(err, fs.ErrNotExist) {
		return missing
	} else if err != nil {
		return err
	}
	d := t.lookup(from, name)
	if d == nil {
		return missing
	}
	ino := d.ino
	if t.inodes.at(ino).isDir() {
		return fmt.Errorf("%w: a hard link to the directory %q", ErrMalformed, clip(target))
	}
	if old != nil {
		if old.ino == ino {
			old.layer = t.layer
			return nil
		}
		t.drop(old)
		if d.ino == 0 { // it lay below what has just been replaced
			return missing
		}
	}
	t.inodes.at(ino).nlink++
	return t.enter(dir, base, ino)
}

// setDir gives a directory the attributes of n and leaves what is in it.
func (t *tree) setDir(ino uint32, n inode) {
	d := t.inodes.at(ino)
	d.mode, d.uid, d.gid, d.mtime, d.nsec, d.xoff, d.xlen = n.mode, n.uid, n.gid, n.mtime, n.nsec, n.xoff, n.xlen
}

var kinds = map[byte]uint16{
	tar.TypeReg: sREG, tar.TypeLink: sREG, tar.TypeSymlink: sLNK, tar.TypeDir: sDIR,
	tar.TypeChar: sCHR, tar.TypeBlock: sBLK, tar.TypeFifo: sFIFO,
}

// inode makes a file of a header's attributes: checked, and its xattrs in the spool.
func (t *tree) inode(h *tar.Header) (n inode, err error) {
	kind, ok := kinds[h.Typeflag]
	if !ok {
		return n, fmt.Errorf("%w: an entry of type %q", ErrMalformed, h.Typeflag)
	}
	if h.Size < 0 || h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return n, fmt.Errorf("%w: size %d, owner %d:%d", ErrMalformed, h.Size, h.Uid, h.Gid)
	}
	n = inode{mode: kind | uint16(h.Mode&0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid)}
	// Before 1970 and after 2500 is a builder's mistake, and no reason to refuse an image.
	if sec := h.ModTime.Unix(); sec > 0 && sec < 1<<34 {
		n.mtime, n.nsec = sec, uint32(h.ModTime.Nanosecond())
	}
	switch kind {
	case sCHR, sBLK:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return n, fmt.Errorf("%w: device %d:%d", ErrMalformed, h.Devmajor, h.Devminor)
		}
		n.rdev = uint32(h.Devminor&0xff | h.Devmajor<<8 | h.Devminor>>8<<20) // Linux's new_encode_dev
	case sLNK:
		n.mode = sLNK | 0o777
		if h.Linkname == "" || len(h.Linkname) >= maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return n, fmt.Errorf("%w: a symbolic link to %q", ErrMalformed, clip(h.Linkname))
		}
	}
	if h.Typeflag == tar.TypeLink {
		return n, nil // the file has its attributes
	}
	body, err := xattrBody(h.PAXRecords)
	if err != nil || body == nil {
		return n, err
	}
	n.xoff, n.xlen = t.spool.end, uint32(len(body))
	_, err = t.spool.Write(body)
	return n, err
}

// xattrKinds are the prefixes that Linux has and EROFS has numbers for (erofs_fs.h). Others, such as
// a Mac's com.apple.*, no guest could read, and they are left out.
var xattrKinds = []struct {
	prefix string
	index  byte
	whole  bool // the name has nothing after the prefix
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false}, // security.capability among them: it means something inside the guest only
}

// xattrBody returns the extended attributes of a header as they follow an inode: erofs_xattr_ibody_header
// and inline entries. nil means none.
func xattrBody(pax map[string]string) ([]byte, error) {
	const prefix = "SCHILY.xattr."
	var keys []string
	for k := range pax {
		// The guest's overlayfs would take its own marks in a lower layer for orders.
		if name, ok := strings.CutPrefix(k, prefix); ok &&
			!strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.") {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var b []byte
	for i, k := range keys {
		name, value := k[len(prefix):], pax[k]
		if i >= maxXattrs || len(name) > maxName || strings.IndexByte(name, 0) >= 0 || len(value) > math.MaxUint16 {
			return nil, fmt.Errorf("%w: extended attribute %d, %q, of %d bytes", ErrMalformed, i, clip(name), len(value))
		}
		for _, kind := range xattrKinds {
			suffix, ok := strings.CutPrefix(name, kind.prefix)
			if !ok || kind.whole != (suffix == "") {
				continue
			}
			if b == nil {
				b = make([]byte, 12) // no filter, no shared entries
			}
			b = append(b, byte(len(suffix)), kind.index)
			b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
			b = append(append(b, suffix...), value...)
			b = append(b, make([]byte, -len(b)&3)...)
		}
	}
	if len(b) > maxXattr {
		return nil, fmt.Errorf("%w: %d bytes of extended attributes on one file", ErrTooBig, len(b))
	}
	return b, nil
}
