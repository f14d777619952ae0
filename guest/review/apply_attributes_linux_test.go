//go:build !carrelmac

package review

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const aclName = "system.posix_acl_access"

// acl lets a user (1000) read a file beside its owner and its group, in the form
// of linux/posix_acl_xattr.h: a version, then tag, bits and id of each entry.
func acl(mask uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 4, 1000}, {4, 4, ^uint32(0)}, {0x10, uint32(mask), ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// What a user has noted on a file stays with its name when a guest's content takes
// its place, and when an undo gives the old one back, or the removed one. Rights that
// go with a content do not.
func TestApplyAttributes(t *testing.T) {
	w := newDesk(t, map[string]string{"edit": "old", "gone": "old", "plain": "old"})
	at := func(name string) string { return filepath.Join(w.host, name) }
	for _, name := range []string{"edit", "gone"} {
		for attr, value := range map[string][]byte{"user.note": []byte("mine"), aclName: acl(6)} {
			if err := unix.Setxattr(at(name), attr, value, 0); err != nil {
				t.Fatalf("the file system of the temporary folder has to take %s (set TMPDIR): %v", attr, err)
			}
		}
	}
	// cap_net_raw, as setcap writes it (linux/capability.h, version 2).
	capability := []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if os.Getuid() == 0 {
		if err := unix.Setxattr(at("edit"), "security.capability", capability, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.serve()
	has := func(when, name string, mask uint16) {
		t.Helper()
		b := make([]byte, 1024)
		if n, err := unix.Getxattr(at(name), "user.note", b); err != nil || string(b[:n]) != "mine" {
			t.Errorf("%s, %s has the note %q, %v", when, name, b[:max(n, 0)], err)
		}
		if n, err := unix.Getxattr(at(name), aclName, b); err != nil || !bytes.Equal(b[:n], acl(mask)) {
			t.Errorf("%s, %s has the list %x, %v, want %x", when, name, b[:max(n, 0)], err, acl(mask))
		}
		if _, err := unix.Getxattr(at(name), "security.capability", b); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s, %s has a capability: %v", when, name, err)
		}
	}
	w.guest(Entry{Name: "edit", Kind: File, Target: "new", Mode: 0o640}, Entry{Name: "gone", Kind: Removed}, Entry{Name: "plain", Kind: File, Target: "new", Mode: 0o644})
	for name, why := range w.apply(ApplyOptions{Overwrite: true}) {
		if why != "" {
			t.Errorf("%s: %s", name, why)
		}
	}
	if w.file("edit") != "new" || w.file("gone") != "(none)" {
		t.Fatalf("applied:\n%s", w.tree())
	}
	has("after the apply", "edit", 4) // the mode that was reviewed bounds what the list gives
	if n, err := unix.Listxattr(at("plain"), make([]byte, 1024)); err != nil || n != 0 {
		t.Errorf("a file without attributes has got some: %d, %v", n, err)
	}
	w.undo(UndoOptions{})
	if w.file("edit") != "old" || w.file("gone") != "old" {
		t.Fatalf("undone:\n%s", w.tree())
	}
	has("after the undo", "edit", 6)
	has("after the undo", "gone", 6)
}
