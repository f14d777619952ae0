package review

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

func openTestStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func addBlob(t *testing.T, s *Store, content string) string {
	t.Helper()
	b, err := s.newBlob()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(b, content); err != nil {
		t.Fatal(err)
	}
	sum, err := b.keep()
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func sampleEntries(t *testing.T, s *Store) []Entry {
	sum := addBlob(t, s, "hello")
	return []Entry{
		{Name: "a\n\xff", Kind: File, Mode: 0o644, Size: 5, Blob: sum, Stamp: "\x00s", Task: "T", Base: infoFor(3), Mtime: time.Unix(-1, 5)},
		{Name: "d", Kind: NewFolder, Mode: 0o755, Stamp: "2"},
		{Name: "d/l", Kind: Link, Mode: 0o777, Target: "/etc/passwd", Stamp: "3"},
		{Name: "d-", Kind: Removed, Stamp: "4", Ignored: true},
		{Name: "k.pem", Kind: File, Hidden: true, Size: 9, Note: "why"},
		{Name: ".git/x", Kind: Other, Stamp: "5"},
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	want := sampleEntries(t, s)
	if err := s.change(func(i *index) { i.entries = slices.Clone(want); i.incomplete = "more" }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(want, func(a, b Entry) int { return less(a.Name, b.Name) })
	s = openTestStore(t, dir)
	got := s.Entries()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got, want := s.Counts(), (Counts{Changes: 3, Git: 1, Ignored: 1, Hidden: 1, Bytes: 5, Incomplete: "more"}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	f, err := s.Blob(want[1].Blob)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(f)
	f.Close()
	if string(b) != "hello" {
		t.Errorf("the content is %q", b)
	}
	// A content goes with the last entry that names it.
	if err := s.Drop(map[string]string{want[1].Name: want[1].Stamp, "d/l": "3", "not there": "", "d-": "an older one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Blob(want[1].Blob); !errors.Is(err, ErrDamaged) {
		t.Errorf("the content is still there: %v", err)
	}
	s = openTestStore(t, dir)
	if got := s.Dropped(); !slices.Equal(got, []string{want[1].Name, "d/l"}) {
		t.Errorf("dropped %q", got)
	}
	if got := len(s.Entries()); got != 4 {
		t.Errorf("%d entries are left", got)
	}
	if err := s.Forget([]string{"d/l"}); err != nil {
		t.Fatal(err)
	}
	if got := s.Dropped(); len(got) != 1 {
		t.Errorf("dropped %q", got)
	}
}

func TestStoreDamaged(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	want := sampleEntries(t, s)
	if err := s.change(func(i *index) { i.entries = want }); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, indexName))
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, indexName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
			s.Close()
		}
		s, err := OpenToImport(dir)
		if err != nil {
			t.Errorf("%s: cannot be mended: %v", what, err)
			return
		}
		s.Close()
	}
	for i := range good {
		try("cut short", good[:i])
		b := slices.Clone(good)
		b[i] ^= 1
		try("a bit flipped", b)
	}
	if err := os.WriteFile(filepath.Join(dir, indexName), good, 0o600); err != nil {
		t.Fatal(err)
	}
	openTestStore(t, dir) // the control
}

func TestStoreLinks(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	sum := addBlob(t, s, "x")
	file := filepath.Join(dir, blobPath(sum))
	if err := os.Rename(file, filepath.Join(dir, "y")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../y", file); err != nil {
		t.Skip(err)
	}
	if _, err := s.Blob(sum); !errors.Is(err, ErrDamaged) {
		t.Errorf("a content that is a link: %v", err)
	}
	if addBlob(t, s, "x") != sum {
		t.Error("another sum")
	}
	if f, err := s.Blob(sum); err != nil {
		t.Errorf("a content written again: %v", err)
	} else {
		f.Close()
	}
	if _, err := s.Blob("../index"); err == nil {
		t.Error("a content named by a path was opened")
	}
}

func TestNames(t *testing.T) {
	for name, good := range map[string]bool{
		"a": true, "a/b": true, "..a": true, "a\nb": true, "\xff": true,
		"": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/../b": false, "./a": false, "a\x00b": false,
	} {
		if err := goodName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
	names := []string{"a", "a/b", "a/b/c", "a!", "a-b", "a-b/c", "ab", "b"}
	mixed := slices.Clone(names)
	slices.Reverse(mixed)
	slices.SortFunc(mixed, less)
	if !slices.Equal(mixed, names) {
		t.Errorf("the order is %q", mixed)
	}
}

func FuzzIndex(f *testing.F) {
	i := index{entries: []Entry{{Name: "a", Kind: File, Mode: 0o644, Base: infoFor(1)}, {Name: "b", Kind: Link, Target: "x"}}, dropped: map[string]string{"c": "s"}, incomplete: "w"}
	b := i.marshal()
	f.Add(b[len(indexMagic) : len(b)-32])
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := parseRecords(data)
		if err != nil {
			return
		}
		if _, err := parseIndex(i.marshal(), &index{}); err != nil {
			t.Errorf("what was read cannot be read again: %v", err)
		}
	})
}
