package review

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// scene is a host folder, a store and a guest that says what a test wants.
type scene struct {
	t     testing.TB
	dir   string // the host's folder
	store string
	root  *share.Root
	rules *rules.Set
	base  *Base
	s     *Store

	list     []*wire.Changed
	contents map[string]string
	// answer replaces how a content is sent, if it is not nil.
	answer func(to io.Writer, name string, try int) error
	// deaf: the guest forgets nothing.
	deaf bool
	// play is the guest's side after its list; stop ends the import's time.
	play func(net.Conn) error
	stop func()
	// end replaces the end of the list.
	end *wire.Done

	wanted, dropped []string
}

func newScene(t testing.TB, hosts map[string]string) *scene {
	t.Helper()
	w := &scene{t: t, dir: t.TempDir(), store: t.TempDir(), contents: map[string]string{}}
	for name, content := range hosts {
		w.write(name, content)
	}
	var err error
	if w.root, err = share.OpenRoot(w.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.root.Close() })
	if w.rules, err = rules.Compile(rules.Options{Mode: rules.Review}); err != nil {
		t.Fatal(err)
	}
	w.base = openTestBase(t, w.store)
	w.s = openTestStore(t, w.store)
	w.serve()
	return w
}

// write makes a file of the host, a link if its content begins with "->", a
// folder if its name ends in a slash.
func (w *scene) write(name, content string) {
	w.t.Helper()
	p := filepath.Join(w.dir, name)
	err := os.MkdirAll(filepath.Dir(p), 0o755)
	switch {
	case err != nil:
	case name[len(name)-1] == '/':
		err = os.MkdirAll(p, 0o755)
	case len(content) > 2 && content[:2] == "->":
		err = os.Symlink(content[2:], p)
	default:
		err = os.WriteFile(p, []byte(content), 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// serve notes all that the host has as served.
func (w *scene) serve() {
	w.t.Helper()
	filepath.WalkDir(w.dir, func(p string, _ fs.DirEntry, err error) error {
		name, _ := filepath.Rel(w.dir, p)
		if name = filepath.ToSlash(name); err == nil && name != "." {
			is, err := w.root.Lstat(name)
			if err != nil {
				w.t.Fatal(err)
			}
			w.base.Served(name, is)
		}
		return err
	})
}

func (w *scene) file(name, content string) *wire.Changed {
	w.contents[name] = content
	c := &wire.Changed{Name: name, Type: wire.ChangedType_CHANGED_TYPE_REGULAR, Mode: 0o644, Size: int64(len(content)), Stamp: fmt.Appendf(nil, "s %x", sha256.Sum256([]byte(content)))}
	w.list = append(w.list, c)
	return c
}

func (w *scene) entry(name string, kind wire.ChangedType) *wire.Changed {
	c := &wire.Changed{Name: name, Type: kind, Mode: 0o755, Stamp: []byte("s")}
	w.list = append(w.list, c)
	return c
}

const (
	isFolder  = wire.ChangedType_CHANGED_TYPE_DIRECTORY
	isNew     = wire.ChangedType_CHANGED_TYPE_NEW_DIRECTORY
	isLink    = wire.ChangedType_CHANGED_TYPE_SYMLINK
	isRemoved = wire.ChangedType_CHANGED_TYPE_REMOVED
	isOther   = wire.ChangedType_CHANGED_TYPE_OTHER
)

func (w *scene) link(name, target string) *wire.Changed {
	c := w.entry(name, isLink)
	c.Target = target
	return c
}

func changeFrame(c *wire.Changed) *wire.Reviewed {
	return &wire.Reviewed{Kind: &wire.Reviewed_Change{Change: c}}
}
func dataFrame(b []byte) *wire.Reviewed {
	return &wire.Reviewed{Kind: &wire.Reviewed_Data{Data: b}}
}
func doneFrame(why string) *wire.Reviewed {
	return &wire.Reviewed{Kind: &wire.Reviewed_Done{Done: &wire.Done{Error: why}}}
}

// guest plays the guest's side.
func (w *scene) guest(conn net.Conn) error {
	defer conn.Close()
	for _, c := range w.list {
		if err := wire.Write(conn, changeFrame(c)); err != nil {
			return err
		}
	}
	end := doneFrame("")
	if w.end != nil {
		end = &wire.Reviewed{Kind: &wire.Reviewed_Done{Done: w.end}}
	}
	if err := wire.Write(conn, end); err != nil {
		return err
	}
	if w.play != nil {
		return w.play(conn)
	}
	tries := map[string]int{}
	for in := wire.NewReader(conn); ; {
		m := new(wire.Reviewing)
		if err := in.Read(m); err != nil {
			return err
		}
		if d := m.GetDrop(); d != nil && w.deaf {
			if err := wire.Write(conn, doneFrame("no")); err != nil {
				return err
			}
			continue
		} else if d != nil {
			w.dropped = append(w.dropped, d.Names...)
			w.forget(d.Names)
			if err := wire.Write(conn, doneFrame("")); err != nil {
				return err
			}
			continue
		}
		name := w.list[m.GetWant().Index].Name
		w.wanted = append(w.wanted, name)
		tries[name]++
		send := w.answer
		if send == nil {
			send = w.content
		}
		if err := send(conn, name, tries[name]); err != nil {
			return err
		}
	}
}

// forget is what the agent makes of a Drop: a folder that the host has too goes
// on as one that changes nothing.
func (w *scene) forget(names []string) {
	slices.SortFunc(names, func(a, b string) int { return less(b, a) })
	for _, name := range names {
		is, err := os.Lstat(filepath.Join(w.dir, name))
		w.list = slices.DeleteFunc(w.list, func(c *wire.Changed) bool {
			if c.Name != name {
				return false
			}
			if folder := c.Type == isFolder || c.Type == isNew; folder && err == nil && is.IsDir() {
				c.Type, c.Mode = isFolder, uint32(is.Mode().Perm())
				return false
			} else if folder {
				return !slices.ContainsFunc(w.list, func(o *wire.Changed) bool { return parent(o.Name) == name })
			}
			return true
		})
	}
}

func (w *scene) content(to io.Writer, name string, _ int) error {
	for b := []byte(w.contents[name]); len(b) > 0; {
		n := min(len(b), 1000)
		if err := wire.Write(to, dataFrame(b[:n])); err != nil {
			return err
		}
		b = b[n:]
	}
	return wire.Write(to, doneFrame(""))
}

// patience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

func (w *scene) options() ImportOptions {
	return ImportOptions{Root: w.root, Rules: w.rules, Base: w.base, Task: "T"}
}

func (w *scene) tryImport(ctx context.Context, o ImportOptions) (Counts, error) {
	w.t.Helper()
	w.wanted, w.dropped = nil, nil
	host, guest := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- w.guest(guest) }()
	counts, err := w.s.Import(ctx, host, o)
	host.Close()
	select {
	case <-done:
	case <-time.After(patience):
		w.t.Fatal("the guest's side hangs")
	}
	return counts, err
}

func (w *scene) imported() Counts {
	w.t.Helper()
	counts, err := w.tryImport(context.Background(), w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	again := openTestStore(w.t, w.store)
	if a, b := again.Entries(), w.s.Entries(); len(a) != len(b) {
		w.t.Fatalf("%d entries on the disk, %d in memory", len(a), len(b))
	}
	return counts
}

func (w *scene) get(name string) *Entry {
	for _, e := range w.s.Entries() {
		if e.Name == name {
			return &e
		}
	}
	return nil
}

func (w *scene) names() (names []string) {
	for _, e := range w.s.Entries() {
		names = append(names, e.Name)
	}
	return names
}

func (w *scene) wantNames(want ...string) {
	w.t.Helper()
	if got := w.names(); !slices.Equal(got, want) {
		w.t.Errorf("entries %q, want %q", got, want)
	}
}

func (w *scene) wantContent(name, want string) {
	w.t.Helper()
	e := w.get(name)
	if e == nil || e.Blob == "" {
		w.t.Errorf("%q has no content: %+v", name, e)
		return
	}
	var b taken
	if _, err := w.s.CopyBlob(&b, e.Blob); err != nil || string(b) != want {
		w.t.Errorf("%q has %q, want %q: %v", name, b, want, err)
	}
}

type taken []byte

func (w *taken) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }

var errEnough = errors.New("enough")
