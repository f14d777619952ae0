package review

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/carrel-vm/carrel/guest/share"
)

// goodName checks a name of a change set. The guest's kernel would send no bad
// one, so it is refused and not repaired.
func goodName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case len(name) > MaxName:
		return errors.New("is too long")
	case strings.IndexByte(name, 0) >= 0:
		return errors.New("has a NUL")
	case strings.Count(name, "/") >= MaxDepth:
		return errors.New("is too deep")
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "":
			return errors.New("has an empty part")
		case part == "." || part == "..":
			return errors.New("has a part of dots")
		case len(part) > maxPart:
			return errors.New("has a part that is too long")
		}
	}
	return nil
}

// possible says whether the host can have a name: to some it would be a drive, a
// stream or a device.
func possible(name string) bool {
	return share.GoodPath(name) == nil && filepath.IsLocal(filepath.FromSlash(name))
}

// parent is the name of the folder that name is in; "" is the root.
func parent(name string) string {
	return name[:max(0, strings.LastIndexByte(name, '/'))]
}

// within says whether name is dir or lies below it; "" is the root.
func within(name, dir string) bool {
	return dir == "" || name == dir || len(name) > len(dir) && name[len(dir)] == '/' && name[:len(dir)] == dir
}

// less orders names so that a folder comes before what is in it, and all that
// is in it before its next neighbour: '/' sorts before every other byte.
func less(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		default:
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}

// inGit says whether a name is that of a repository's own folder, at any
// depth, or lies in one. Case is folded, as on the hosts that do.
func inGit(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if strings.EqualFold(part, ".git") {
			return true
		}
	}
	return false
}
