package agent

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// reviewed is one review from the host's side.
type reviewed struct {
	*session
	list []*wire.Changed
}

// review lists the changes at a path; refused is why there is no list.
func (h *host) review(at string) (r *reviewed, refused string) {
	h.t.Helper()
	r = &reviewed{session: h.call(&wire.Call{Kind: &wire.Call_Review{Review: &wire.Review{Path: at}}})}
	for {
		var m wire.Reviewed
		if err := r.r.Read(&m); err != nil {
			h.t.Fatal(err)
		}
		switch k := m.Kind.(type) {
		case *wire.Reviewed_Change:
			r.list = append(r.list, k.Change)
		case *wire.Reviewed_Done:
			return r, k.Done.Error
		default:
			h.t.Fatalf("%v in a list", &m)
		}
	}
}

// ask sends one frame and returns what comes until Done, and Done's error.
func (r *reviewed) ask(m *wire.Reviewing) ([]byte, string) {
	r.t.Helper()
	r.send(m)
	return r.answer()
}

func (r *reviewed) answer() ([]byte, string) {
	r.t.Helper()
	var all []byte
	for {
		var m wire.Reviewed
		if err := r.r.Read(&m); err != nil {
			r.t.Fatal(err)
		}
		switch k := m.Kind.(type) {
		case *wire.Reviewed_Data:
			if len(k.Data) > reviewChunk {
				r.t.Errorf("a piece of %d bytes", len(k.Data))
			}
			all = append(all, k.Data...)
		case *wire.Reviewed_Done:
			return all, k.Done.Error
		}
	}
}

func (r *reviewed) content(i int) ([]byte, string) {
	r.t.Helper()
	return r.ask(&wire.Reviewing{Kind: &wire.Reviewing_Want{Want: &wire.Want{Index: uint32(i)}}})
}

func (r *reviewed) drop(names ...string) string {
	r.t.Helper()
	_, e := r.ask(&wire.Reviewing{Kind: &wire.Reviewing_Drop{Drop: &wire.Drop{Names: names}}})
	return e
}

func (r *reviewed) names() (names []string) {
	for _, c := range r.list {
		names = append(names, c.Name)
	}
	return names
}

// kinds tells of each entry what it is, for a message and to compare.
func (r *reviewed) kinds() map[string]string {
	m := make(map[string]string)
	for _, c := range r.list {
		m[c.Name] = strings.TrimPrefix(c.Type.String(), "CHANGED_TYPE_")
	}
	return m
}

// apply does to a folder what the list says, as if all of it were agreed to.
func (r *reviewed) apply(root string) {
	r.t.Helper()
	for i, c := range r.list {
		at := filepath.Join(root, c.Name)
		var err error
		if c.Type != wire.ChangedType_CHANGED_TYPE_DIRECTORY {
			if _, e := os.Lstat(at); c.Type == wire.ChangedType_CHANGED_TYPE_REMOVED && e != nil {
				r.t.Errorf("removed, but never there: %s", c.Name)
			}
			err = os.RemoveAll(at)
		}
		if err != nil {
			r.t.Fatal(err)
		}
		switch c.Type {
		case wire.ChangedType_CHANGED_TYPE_REGULAR:
			b, e := r.content(i)
			if e != "" || int64(len(b)) != c.Size {
				r.t.Errorf("content of %s: %d bytes, %q; %d were announced", c.Name, len(b), e, c.Size)
			}
			err = os.WriteFile(at, b, 0o600)
		case wire.ChangedType_CHANGED_TYPE_NEW_DIRECTORY:
			err = os.Mkdir(at, 0o700)
		case wire.ChangedType_CHANGED_TYPE_SYMLINK:
			err = os.Symlink(c.Target, at)
		case wire.ChangedType_CHANGED_TYPE_OTHER:
			err = unix.Mkfifo(at, 0o600)
		}
		if err == nil && c.Type != wire.ChangedType_CHANGED_TYPE_REMOVED && c.Type != wire.ChangedType_CHANGED_TYPE_SYMLINK {
			err = os.Chmod(at, os.FileMode(c.Mode))
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// look describes all of a folder.
func look(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil || p == root {
			return err
		}
		fmt.Fprintf(&b, "%s %v", strings.TrimPrefix(p, root+"/"), fi.Mode())
		switch {
		case fi.Mode().IsRegular():
			c, err := readPlain(p)
			if err != nil {
				return err
			}
			if len(c) > 64 {
				c = fmt.Appendf(nil, "%d bytes: %x", len(c), sha256.Sum256(c))
			}
			fmt.Fprintf(&b, " %q", c)
		case fi.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", target)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// readPlain reads a file without Go's poller, which may not wait for a share
// whose server is in the same process.
func readPlain(p string) ([]byte, error) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var all bytes.Buffer
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, b)
		if n <= 0 {
			return all.Bytes(), err
		}
		all.Write(b[:n])
	}
}
