package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

const (
	regular = wire.FileType_FILE_TYPE_REGULAR
	folder  = wire.FileType_FILE_TYPE_DIRECTORY
	link    = wire.FileType_FILE_TYPE_SYMLINK
)

// item is one File of a copy with what follows it.
type item struct {
	*wire.File
	data []byte
}

func file(name, data string) item {
	return item{&wire.File{Name: name, Type: regular, Mode: 0o640, Size: int64(len(data))}, []byte(data)}
}

// put copies items and returns Done's error.
func (h *host) put(p *wire.Put, items ...item) string {
	h.t.Helper()
	s := h.call(&wire.Call{Kind: &wire.Call_Put{Put: p}})
	for _, i := range items {
		if wire.Write(s.conn, &wire.Copy{Kind: &wire.Copy_File{File: i.File}}) != nil {
			break // refused: Done says why
		}
		for d := i.data; len(d) > 0; {
			n := min(len(d), wire.DataChunk)
			if wire.Write(s.conn, &wire.Copy{Kind: &wire.Copy_Data{Data: d[:n]}}) != nil {
				break
			}
			d = d[n:]
		}
	}
	_ = wire.Write(s.conn, &wire.Copy{Kind: &wire.Copy_Done{Done: &wire.Done{}}})
	var m wire.Copy
	if err := s.r.Read(&m); err != nil || m.GetDone() == nil {
		h.t.Fatalf("answer to Put: %v, %v", &m, err)
	}
	_ = s.conn.Close()
	return m.GetDone().Error
}

// get copies path out and returns what came and Done's error.
func (h *host) get(path string) ([]item, string) {
	h.t.Helper()
	s := h.call(&wire.Call{Kind: &wire.Call_Get{Get: &wire.Get{Path: path}}})
	var items []item
	for {
		var m wire.Copy
		if err := s.r.Read(&m); err != nil {
			h.t.Fatalf("the copy ended without Done: %v", err)
		}
		switch k := m.Kind.(type) {
		case *wire.Copy_File:
			items = append(items, item{File: k.File})
		case *wire.Copy_Data:
			i := &items[len(items)-1]
			i.data = append(i.data, k.Data...)
		case *wire.Copy_Done:
			_ = s.conn.Close()
			for _, i := range items {
				if i.Type == regular && int64(len(i.data)) != i.Size && k.Done.Error == "" {
					h.t.Fatalf("%s has %d bytes, %d were announced", i.Name, len(i.data), i.Size)
				}
			}
			return items, k.Done.Error
		}
	}
}

func TestPutAndGet(t *testing.T) {
	h := ready(t)
	dir := t.TempDir()
	big := make([]byte, 3<<20+17)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(big)
	e := h.put(&wire.Put{Path: dir + "/new/in", Mkdir: true},
		item{File: &wire.File{Name: "d", Type: folder, Mode: 0o750}},
		file("d/a", "hello"),
		file("d/empty", ""),
		item{&wire.File{Name: "d/big", Type: regular, Mode: 0o755, Size: int64(len(big))}, big},
		item{File: &wire.File{Name: "d/l", Type: link, Target: "../../anywhere"}},
		item{File: &wire.File{Name: "d/sealed", Type: folder, Mode: 0o500}},
		file("d/sealed/x", "in"),
	)
	if e != "" {
		t.Fatal(e)
	}
	for name, mode := range map[string]os.FileMode{"d": 0o750, "d/a": 0o640, "d/big": 0o755, "d/sealed": 0o500} {
		st, err := os.Stat(filepath.Join(dir, "new/in", name))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %v", name, st, err, mode)
		}
	}
	items, e := h.get(dir + "/new/in/d")
	if e != "" {
		t.Fatal(e)
	}
	got := map[string]item{}
	for _, i := range items {
		got[i.Name] = i
	}
	if len(got) != 7 || string(got["d/a"].data) != "hello" || got["d/a"].Mode != 0o640 || got["d/l"].Target != "../../anywhere" ||
		got["d/l"].Type != link || got["d"].Type != folder || string(got["d/sealed/x"].data) != "in" {
		t.Fatalf("got %v", got)
	}
	if sha256.Sum256(got["d/big"].data) != sha256.Sum256(big) {
		t.Fatal("the large file changed on its way")
	}
	if items[0].Name != "d" {
		t.Fatalf("the first name is %q", items[0].Name)
	}
	// Again over it: files are replaced, folders stay.
	if e := h.put(&wire.Put{Path: dir + "/new/in"}, item{File: &wire.File{Name: "d", Type: folder, Mode: 0o700}}, file("d/a", "changed")); e != "" {
		t.Fatal(e)
	}
	if b, _ := os.ReadFile(dir + "/new/in/d/a"); string(b) != "changed" {
		t.Fatalf("the file holds %q", b)
	}
	_ = os.Chmod(dir+"/new/in/d/sealed", 0o700)
}

// TestPutStaysBeneath: no name leaves the target, and no link that stands
// there is followed.
func TestPutStaysBeneath(t *testing.T) {
	h := ready(t)
	top := t.TempDir()
	in, outside := top+"/in", top+"/outside"
	if err := errors.Join(os.Mkdir(in, 0o700), os.Mkdir(outside, 0o700), os.WriteFile(outside+"/f", []byte("canary"), 0o600),
		os.Symlink(outside, in+"/away"), os.Symlink(outside+"/f", in+"/file"), os.Symlink("real", in+"/inside"), os.Mkdir(in+"/real", 0o700)); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x/", maxDepth) + "x"
	for _, name := range []string{"", ".", "..", "../f", "/etc/x", "a/../../f", "a//b", "a/", "./a", "a/.", "a\x00b", "away/new", "away/f", "inside/x", long} {
		if e := h.put(&wire.Put{Path: in}, file(name, "evil")); e == "" {
			t.Errorf("name %.40q was taken", name)
		}
	}
	for name, f := range map[string]*wire.File{
		"set-uid":            {Name: "s", Type: regular, Mode: 0o4755},
		"negative size":      {Name: "s", Type: regular, Size: -1},
		"folder with size":   {Name: "s", Type: folder, Size: 5},
		"no type":            {Name: "s"},
		"unknown type":       {Name: "s", Type: 9},
		"folder over a link": {Name: "away", Type: folder, Mode: 0o700},
	} {
		if e := h.put(&wire.Put{Path: in}, item{File: f}); e == "" {
			t.Errorf("%s was taken", name)
		}
	}
	for name, items := range map[string][]item{
		"more data than said":  {{&wire.File{Name: "m", Type: regular, Mode: 0o600, Size: 1}, []byte("22")}},
		"less data than said":  {{&wire.File{Name: "m", Type: regular, Mode: 0o600, Size: 3}, []byte("22")}},
		"data without a file":  {{&wire.File{Name: "m", Type: folder, Mode: 0o700}, []byte("22")}},
		"next file too early":  {{&wire.File{Name: "m2", Type: regular, Mode: 0o600, Size: 3}, []byte("22")}, file("n", "x")},
		"file beneath nothing": {file("nowhere/x", "x")},
	} {
		if e := h.put(&wire.Put{Path: in}, items...); e == "" {
			t.Errorf("%s was taken", name)
		}
	}
	if e := h.put(&wire.Put{Path: "relative"}, file("a", "x")); e == "" {
		t.Error("a relative target was taken")
	}
	if e := h.put(&wire.Put{Path: in + "/missing"}, file("a", "x")); e == "" {
		t.Error("a missing target was taken")
	}
	// A link with a file's name is replaced, not written through. This and a
	// name next to the refused ones are the control.
	if e := h.put(&wire.Put{Path: in}, file("file", "mine"), file("real/x", "mine")); e != "" {
		t.Fatal(e)
	}
	if b, _ := os.ReadFile(in + "/file"); string(b) != "mine" {
		t.Fatalf("the file holds %q", b)
	}
	if b, _ := os.ReadFile(outside + "/f"); string(b) != "canary" {
		t.Fatalf("the canary holds %q", b)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Fatalf("outside holds %v", left)
	}
}

func TestGetOdd(t *testing.T) {
	h := ready(t)
	dir := t.TempDir() + "/d"
	if err := errors.Join(os.Mkdir(dir, 0o700), unix.Mkfifo(dir+"/pipe", 0o600), os.WriteFile(dir+"/f", []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	items, e := h.get(dir)
	if len(items) != 2 || !strings.Contains(e, "d/pipe") {
		t.Fatalf("%d items, error %q", len(items), e)
	}
	for _, p := range []string{"/", "relative", dir + "/missing", "/a\x00b"} {
		if _, e := h.get(p); e == "" {
			t.Errorf("%q was copied", p)
		}
	}
	items, e = h.get(dir + "/f")
	if e != "" || len(items) != 1 || items[0].Name != "f" || !bytes.Equal(items[0].data, []byte("x")) {
		t.Fatalf("%v %q", items, e)
	}
}

// TestCopyUser: a copy may do what its user may, and owns what it makes.
func TestCopyUser(t *testing.T) {
	h := ready(t)
	if os.Geteuid() != 0 {
		if e := h.put(&wire.Put{Path: "/tmp", User: "root"}); !strings.Contains(e, "not root") {
			t.Fatalf("a copy as root: %q", e)
		}
		return
	}
	dir, err := os.MkdirTemp("/tmp", "copyuser")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(dir+"/his", 0o700), os.Chown(dir+"/his", 1000, 1000), os.Mkdir(dir+"/roots", 0o700)); err != nil {
		t.Fatal(err)
	}
	if e := h.put(&wire.Put{Path: dir + "/his", User: "1000"}, file("a", "x")); e != "" {
		t.Fatal(e)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/his/a", &st); err != nil || st.Uid != 1000 || st.Gid != 1000 {
		t.Fatalf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
	if e := h.put(&wire.Put{Path: dir + "/roots", User: "1000"}, file("a", "x")); e == "" {
		t.Fatal("user 1000 wrote to root's folder")
	}
	s := h.call(&wire.Call{Kind: &wire.Call_Get{Get: &wire.Get{Path: "/etc/shadow", User: "1000"}}})
	var m wire.Copy
	if err := s.r.Read(&m); err != nil || !strings.Contains(m.GetDone().GetError(), "permission") {
		t.Fatalf("user 1000 gets %v, %v", &m, err)
	}
	_ = s.conn.Close()
	if e := h.put(&wire.Put{Path: dir + "/roots", User: "0"}, file("a", "x")); e != "" {
		t.Fatal(e)
	}
}

// TestCopyBreaksOff: a host that goes away leaves no process behind.
func TestCopyBreaksOff(t *testing.T) {
	h := ready(t)
	dir := t.TempDir()
	s := h.call(&wire.Call{Kind: &wire.Call_Put{Put: &wire.Put{Path: dir}}})
	s.send(&wire.Copy{Kind: &wire.Copy_File{File: &wire.File{Name: "a", Type: regular, Size: 100, Mode: 0o600}}})
	_ = s.conn.Close()
	gone(t, copyName)
	// And one that stops reading is ended with the agent (the cleanup waits).
	if err := os.WriteFile(dir+"/big", make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s = h.call(&wire.Call{Kind: &wire.Call_Get{Get: &wire.Get{Path: dir + "/big"}}})
	var m wire.Copy
	if err := s.r.Read(&m); err != nil || m.GetFile() == nil {
		t.Fatalf("%v %v", &m, err)
	}
}
