package agent

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

const (
	// forgetAtOnce is how many entries are forgotten while nothing else about
	// shares can happen.
	forgetAtOnce = 1024
	// maxForgotten bounds sharedFolder.forgotten.
	maxForgotten = 1 << 16
)

// errKept is why an entry is not forgotten.
var errKept = errors.New("it is in use, or has changed since it was listed")

var nameSeed = maphash.MakeSeed()

// drop forgets entries of the list, by their names; none: all of them. The
// host's entries of these names are seen again, or nothing where the host has
// none. What is in a folder is forgotten by its own name, not by the folder's.
//
// What has changed since it was listed, or what a task has open for writing,
// stays, and the error says so: the host does not know what is in it.
func (s *reviewer) drop(names []string) error {
	if s.index == nil {
		s.index = make(map[uint64]int32, len(s.list.entries))
		for i := range s.list.entries {
			s.index[maphash.String(nameSeed, visible(s.list.name(int32(i))))] = int32(i)
		}
	}
	which := s.full
	for _, name := range names {
		if i, ok := s.index[maphash.String(nameSeed, name)]; ok {
			which = append(which, i)
		}
	}
	if len(names) == 0 {
		for i := range s.list.entries {
			which = append(which, int32(i))
		}
	}
	// What is in a folder comes after it in the list, and goes before it.
	slices.Sort(which)
	which = slices.Compact(which)
	slices.Reverse(which)
	s.full = nil
	kept, first := 0, ""
	for batch := range slices.Chunk(which, forgetAtOnce) {
		err := s.shares.forget(s, batch, func(name string) {
			if kept++; kept == 1 {
				first = name
			}
		})
		if err != nil {
			return err
		}
	}
	if kept > 0 {
		return fmt.Errorf("%d changes stay, the first is %.200q: %w", kept, first, errKept)
	}
	return nil
}

// forget forgets a few entries, and calls kept for those that stay.
func (k *shares) forget(s *reviewer, which []int32, kept func(name string)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := k.find(s.path)
	if err != nil {
		return err
	}
	// What the host has counts as it is now.
	if err := n.refresh(); err != nil {
		return err
	}
	busy := n.written()
	for _, i := range which {
		e, name := &s.list.entries[i], s.list.name(i)
		if busy[name] {
			kept(name)
			continue
		}
		err = forget(s.upper, s.lower, name, e, k.m.notes())
		switch {
		case errors.Is(err, errKept):
			kept(name)
			err = nil
		case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
			s.full = append(s.full, i)
			err = nil
		case err == nil && e.kind == wire.ChangedType_CHANGED_TYPE_REMOVED:
			n.forgot(name)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("forget the change of %.200q: %w", name, err), n.refresh())
		}
	}
	return n.refresh()
}

// forgot notes that the removal of a name was forgotten, so that the next one
// can be told from it.
func (n *sharedFolder) forgot(name string) {
	if n.forgotten == nil || len(n.forgotten) >= maxForgotten {
		n.forgotten = make(map[string]int64)
	}
	n.forgotten[name] = time.Now().UnixNano()
}

func (k *shares) whenForgotten(at, name string) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.byPath[path.Clean(at)]; n != nil {
		return n.forgotten[name]
	}
	return 0
}

// forget removes one entry of an upper folder, if it is what was listed. Where
// the host has a folder of that name, the layer's stays, as one that hides and
// changes nothing: a task may be in it.
func forget(upper, lower int, name string, e *changed, notes string) error {
	dir, base := path.Split(name)
	parent, err := openBeneath(upper, path.Clean(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return unlessAbsent(err)
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return unlessAbsent(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if identify(&st) != e.is {
			return errKept
		}
		return unlessAbsent(unix.Unlinkat(parent, base, 0))
	}
	if e.is.mode&unix.S_IFMT != unix.S_IFDIR {
		return errKept
	}
	below, err := openBeneath(lower, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	switch {
	case err == nil:
		defer unix.Close(below)
		return merge(parent, base, below, notes)
	case absent(err):
		return unlessAbsent(unix.Unlinkat(parent, base, unix.AT_REMOVEDIR))
	}
	return fmt.Errorf("look at what the host has: %w", err)
}

// merge makes a folder of the layer show the host's, with its mode.
func merge(parent int, base string, below int, notes string) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlessAbsent(err)
	}
	defer unix.Close(fd)
	// What the kernel remembers may be what an apply has changed just now.
	var st unix.Statx_t
	if err := unix.Statx(below, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MODE, &st); err != nil {
		return err
	}
	if err := unix.Fremovexattr(fd, notes+"opaque"); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return unix.Fchmod(fd, uint32(st.Mode)&0o1777)
}

// written are the names in a share that processes have open for writing. What
// they would write after the name is gone would be nowhere.
func (n *sharedFolder) written() map[string]bool {
	root, err := os.Readlink(held(n.at))
	if err != nil {
		return nil
	}
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil
	}
	names := make(map[string]bool)
	for _, f := range files {
		to, err := os.Readlink(f)
		if err != nil {
			continue // it has been closed
		}
		name, in := strings.CutPrefix(to, root+"/")
		if !in {
			continue
		}
		pid, fd, _ := strings.Cut(strings.TrimPrefix(f, "/proc/"), "/fd/")
		b, err := os.ReadFile("/proc/" + pid + "/fdinfo/" + fd)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "flags:"); ok {
				how, err := strconv.ParseUint(strings.TrimSpace(v), 8, 64)
				if err == nil && how&unix.O_PATH == 0 && how&unix.O_ACCMODE != unix.O_RDONLY {
					names[name] = true
				}
			}
		}
	}
	return names
}

// absent says that there is nothing of that name.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// unlessAbsent is the error of what need not be done any more.
func unlessAbsent(err error) error {
	if absent(err) {
		return nil
	}
	return err
}
