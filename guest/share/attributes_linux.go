package share

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of what a file has beside its content: the kernel's own for a list and
// for one value (XATTR_LIST_MAX, XATTR_SIZE_MAX, linux/limits.h), and ours for how many.
const (
	maxAttributes     = 256
	maxAttributeBytes = 64 << 10
)

// CopyAttributes gives to h what a user has noted on from: attributes in the
// user's own space (user.*) and the list of who else may use the file (POSIX ACL).
// No other: security.capability and its like are rights that go with a content, and
// not with a name. Where a file system has none, there is nothing to do. The bits
// of a mode are to be set afterwards, since a list brings its own.
func (h *Handle) CopyAttributes(from *Handle) error {
	to, ok := h.f.(linuxFile)
	src, ok2 := from.f.(linuxFile)
	if !ok || !ok2 {
		return nil
	}
	list := make([]byte, maxAttributeBytes)
	n, err := unix.Flistxattr(int(src), list)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	if err != nil {
		return said("list the attributes of", "the file", err)
	}
	value := make([]byte, maxAttributeBytes)
	taken := 0
	for name := range bytes.SplitSeq(list[:n], []byte{0}) {
		name := string(name)
		if !strings.HasPrefix(name, "user.") && name != "system.posix_acl_access" {
			continue
		}
		if taken++; taken > maxAttributes {
			return errors.New("the file has more attributes than can be kept")
		}
		n, err := unix.Fgetxattr(int(src), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue // it has gone meanwhile
		}
		if err == nil {
			err = unix.Fsetxattr(int(to), name, value[:n], 0)
		}
		switch {
		case err == nil, errors.Is(err, unix.ENOTSUP): // the other file system has none of the kind
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.E2BIG):
			// Not the disk is full, but the room that a file has for them.
			return fmt.Errorf("there is no room for its attribute %.100q", name)
		default:
			return said("keep the attribute", name, err)
		}
	}
	return nil
}
