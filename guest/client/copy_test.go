//go:build unix

package client

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

func reg(name, data string) []*api.GetResponse {
	out := []*api.GetResponse{entryMsg(&api.File{Name: name, Type: api.FileType_FILE_TYPE_REGULAR, Mode: 0o644, Size: int64(len(data))})}
	if data != "" {
		out = append(out, dataMsg(data))
	}
	return out
}

func dir(name string) []*api.GetResponse {
	return []*api.GetResponse{entryMsg(&api.File{Name: name, Type: api.FileType_FILE_TYPE_DIRECTORY, Mode: 0o755})}
}

func link(name, target string) []*api.GetResponse {
	return []*api.GetResponse{entryMsg(&api.File{Name: name, Type: api.FileType_FILE_TYPE_SYMLINK, Target: target})}
}

func entryMsg(f *api.File) *api.GetResponse {
	return &api.GetResponse{Kind: &api.GetResponse_File{File: f}}
}

func dataMsg(s string) *api.GetResponse {
	return &api.GetResponse{Kind: &api.GetResponse_Data{Data: []byte(s)}}
}

func join(parts ...[]*api.GetResponse) (out []*api.GetResponse) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// tree lists what is below root, with files' contents and links' targets.
func tree(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		b.WriteString(rel)
		switch d.Type() {
		case fs.ModeDir:
			b.WriteString("/")
		case fs.ModeSymlink:
			l, _ := os.Readlink(p)
			b.WriteString("->" + l)
		default:
			c, _ := os.ReadFile(p)
			b.WriteString("=" + string(c))
		}
		b.WriteString(" ")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

// P13, H11: whatever a guest sends, nothing outside the destination changes.
func TestGet(t *testing.T) {
	for _, tc := range []struct {
		name string
		send []*api.GetResponse
		want string // the destination afterwards
		err  string // part of the error; "": none
		warn string
		max  int64
	}{
		{"a file", reg("src", "hello"), "src=hello", "", "", 0},
		{"an empty file", reg("src", ""), "src=", "", "", 0},
		{"a tree", join(dir("src"), dir("src/a"), reg("src/a/f", "1"), reg("src/b", "2")), "src/ src/a/ src/a/f=1 src/b=2", "", "", 0},
		{"strange names", join(dir("src"), reg("src/$(x)", "1"), reg("src/-rf", "2"), reg("src/a\nb", "3")), "src/ src/$(x)=1 src/-rf=2 src/a\nb=3", "", "", 0},
		{"links that stay", join(dir("src"), dir("src/d"), reg("src/d/f", "1"), link("src/l", "d/f"), link("src/d/up", "../d/f")), "src/ src/d/ src/d/f=1 src/d/up->../d/f src/l->d/f", "", "", 0},
		{"replaces a file", join(dir("src"), reg("src/f", "1"), reg("src/f", "2")), "src/ src/f=2", "", "", 0},

		{"dot dot", join(dir("src"), reg("src/../../canary", "x")), "src/", "not a clean path", "", 0},
		{"dot dot first", reg("../canary", "x"), "", "not a clean path", "", 0},
		{"absolute", join(dir("src"), reg("/canary", "x")), "src/", "not a clean path", "", 0},
		{"dot", reg(".", "x"), "", "not a clean path", "", 0},
		{"unclean", join(dir("src"), reg("src/./f", "x")), "src/", "not a clean path", "", 0},
		{"backslash", join(dir("src"), reg(`src\..\..\canary`, "x")), "src/", "the guest sent", "", 0},
		{"NUL", join(dir("src"), reg("src/a\x00b", "x")), "src/", "NUL", "", 0},
		{"empty name", reg("", "x"), "", "length", "", 0},
		{"long name", reg(strings.Repeat("a/", 2049)+"b", "x"), "", "length", "", 0},
		{"deep", join(dir("src"), dir("src"+strings.Repeat("/a", 200))), "src/", "deep", "", 0},
		{"another top", join(dir("src"), dir("other"), reg("other/f", "x")), "src/", "not part of what was asked", "", 0},
		{"top twice", join(dir("src"), link("src", "canary")), "src/", "not part of what was asked", "", 0},
		{"no parent", join(dir("src"), reg("src/a/f", "x")), "src/", "no such file", "", 0},

		{"absolute link", join(dir("src"), link("src/l", "/etc/passwd")), "src/", "", "leads to", 0},
		{"link up and out", join(dir("src"), link("src/l", "../canary")), "src/", "", "leads to", 0},
		{"link over another link", join(dir("src"), dir("src/a"), link("src/a/up", ".."), link("src/l", "a/up/../canary")), "src/ src/a/ src/a/up->..", "", "leads to", 0},
		{"the copy is a link", link("src", "canary"), "", "", "leads to", 0},
		{"write through a sent link", join(dir("src"), dir("src/d"), link("src/l", "d"), reg("src/l/f", "x")), "src/ src/d/ src/l->d", "not a folder here", "", 0},
		{"write over a sent link", join(dir("src"), reg("src/f", "1"), link("src/l", "f"), reg("src/l", "2")), "src/ src/f=1 src/l=2", "", "", 0},
		{"folder over a sent link", join(dir("src"), dir("src/d"), link("src/l", "d"), dir("src/l"), reg("src/l/f", "x")), "src/ src/d/ src/l->d", "exist", "", 0},

		{"too few bytes", reg("src", "hello")[:1], "", "too few", "", 0},
		{"too few bytes, then more", join(dir("src"), reg("src/a", "hello")[:1], reg("src/b", "x")), "src/", "too few", "", 0},
		{"too many bytes", join(reg("src", "hello"), reg("src", "more")[1:]), "", "more bytes", "", 0},
		{"data first", []*api.GetResponse{dataMsg("x")}, "", "without a file", "", 0},
		{"data after a folder", join(dir("src"), []*api.GetResponse{dataMsg("x")}), "src/", "without a file", "", 0},
		{"negative size", []*api.GetResponse{entryMsg(&api.File{Name: "src", Type: api.FileType_FILE_TYPE_REGULAR, Size: -1})}, "", "size", "", 0},
		{"huge size", []*api.GetResponse{entryMsg(&api.File{Name: "src", Type: api.FileType_FILE_TYPE_REGULAR, Size: 1 << 62})}, "", "larger", "", 0},
		{"over the bound", join(dir("src"), reg("src/a", "12345"), reg("src/b", "123456")), "src/ src/a=12345", "larger", "", 10},
		{"unknown type", []*api.GetResponse{entryMsg(&api.File{Name: "src", Type: 9})}, "", "type", "", 0},
		{"no type", []*api.GetResponse{entryMsg(&api.File{Name: "src"})}, "", "type", "", 0},
		{"empty message", []*api.GetResponse{{}}, "", "no known kind", "", 0},
		{"nothing", nil, "", "nothing", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			f.get = tc.send
			c := f.serve(t, home(t))
			outer := t.TempDir()
			dst := filepath.Join(outer, "dst")
			os.Mkdir(dst, 0o755)
			os.WriteFile(filepath.Join(outer, "canary"), []byte("untouched"), 0o600)
			var n notices
			err := c.Get(t.Context(), "g", "/some/src", dst, CopyOptions{Warn: n.add, MaxBytes: tc.max})
			switch {
			case tc.err == "" && err != nil:
				t.Errorf("got %v", err)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("got %v, want an error with %q", err, tc.err)
			}
			if got := tree(t, dst); got != tc.want {
				t.Errorf("the destination has %q, want %q", got, tc.want)
			}
			if got := strings.Replace(tree(t, outer), "dst/", "", 1); !strings.HasPrefix(got, "canary=untouched") {
				t.Errorf("outside: %q", got)
			}
			if (tc.warn != "") != (n.String() != "") || !strings.Contains(n.String(), tc.warn) {
				t.Errorf("warnings %q, want %q", n.String(), tc.warn)
			}
		})
	}
}

// A folder that a guest shares may hold links of the guest's making: nothing is
// written through them either, though they lead to something in the folder.
func TestGetThroughALinkThatIsThere(t *testing.T) {
	f := newFake()
	f.get = join(dir("src"), dir("src/d"), reg("src/d/f", "planted"))
	c := f.serve(t, home(t))
	dst := t.TempDir()
	os.MkdirAll(filepath.Join(dst, "hooks"), 0o755)
	os.MkdirAll(filepath.Join(dst, "src"), 0o755)
	os.Symlink("../hooks", filepath.Join(dst, "src", "d"))
	err := c.Get(t.Context(), "g", "/src", dst, CopyOptions{})
	if got := tree(t, filepath.Join(dst, "hooks")); err == nil || got != "" {
		t.Fatalf("got %v, hooks %q", err, got)
	}
	os.Remove(filepath.Join(dst, "src", "d")) // the control: without the link it is written
	if err := c.Get(t.Context(), "g", "/src", dst, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, dst); got != "hooks/ src/ src/d/ src/d/f=planted" {
		t.Fatalf("%q", got)
	}
}

func TestGetNames(t *testing.T) {
	f := newFake()
	f.get = reg("src", "x")
	c := f.serve(t, home(t))
	dst := t.TempDir()
	for _, tc := range []struct{ local, want, err string }{
		{dst, "src=x", ""},
		{dst + "/", "src=x", ""},
		{filepath.Join(dst, "new"), "new=x", ""},
		{filepath.Join(dst, "no", "new"), "", "no such file"},
		{filepath.Join(dst, "no") + "/", "", "not a folder"},
	} {
		err := c.Get(t.Context(), "g", "/a/src", tc.local, CopyOptions{})
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v, want %q", tc.local, err, tc.err)
		}
		if got := tree(t, dst); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.local, got, tc.want)
		}
		os.RemoveAll(filepath.Join(dst, "src"))
		os.RemoveAll(filepath.Join(dst, "new"))
	}
	for _, from := range []string{"", "rel", "/a\x00", "/" + strings.Repeat("a", 5000)} {
		if err := c.Get(t.Context(), "g", from, dst, CopyOptions{}); CodeOf(err) != "bad_path" {
			t.Errorf("from %.20q: %v, want bad_path", from, err)
		}
	}
}

// Modes come masked: no set-user-id, no sticky bit, nothing beyond the umask.
func TestGetModes(t *testing.T) {
	f := newFake()
	f.get = []*api.GetResponse{entryMsg(&api.File{Name: "src", Type: api.FileType_FILE_TYPE_REGULAR, Mode: 0o7755})}
	c := f.serve(t, home(t))
	dst := t.TempDir()
	if err := c.Get(t.Context(), "g", "/src", dst, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(filepath.Join(dst, "src"))
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode()&^0o755 != 0 || fi.Mode()&0o100 == 0 {
		t.Fatalf("mode %v", fi.Mode())
	}
}

func TestPut(t *testing.T) {
	f := newFake()
	c := f.serve(t, home(t))
	src := filepath.Join(t.TempDir(), "src")
	os.MkdirAll(filepath.Join(src, "d"), 0o755)
	big := strings.Repeat("x", copyChunk+7)
	os.WriteFile(filepath.Join(src, "d", "big"), []byte(big), 0o640)
	os.Symlink("/etc/passwd", filepath.Join(src, "l"))
	var n notices
	put := func(local, to string) (open *api.PutOpen, names []string, data int) {
		t.Helper()
		f.put = nil
		if err := c.Put(t.Context(), "g", local, to, CopyOptions{Warn: n.add}); err != nil {
			t.Fatal(err)
		}
		if err := <-f.left; err != nil {
			t.Fatalf("the copy did not end cleanly: %v", err)
		}
		var buf bytes.Buffer
		for _, m := range f.put {
			switch k := m.Kind.(type) {
			case *api.PutRequest_Open:
				open = k.Open
			case *api.PutRequest_File:
				name := k.File.Name
				if k.File.Target != "" {
					name += "->" + k.File.Target
				}
				names = append(names, name)
			case *api.PutRequest_Data:
				buf.Write(k.Data)
			}
		}
		return open, names, buf.Len()
	}
	open, names, data := put(src, "/work/")
	if open.Path != "/work" || strings.Join(names, " ") != "src src/d src/d/big src/l->/etc/passwd" || data != len(big) {
		t.Fatalf("%v %q %d", open, names, data)
	}
	open, names, _ = put(src, "/work/new")
	if open.Path != "/work" || names[0] != "new" || names[2] != "new/d/big" {
		t.Fatalf("%v %q", open, names)
	}
	open, names, data = put(filepath.Join(src, "d", "big"), "/f")
	if open.Path != "/" || strings.Join(names, " ") != "f" || data != len(big) {
		t.Fatalf("%v %q %d", open, names, data)
	}
	if err := c.Put(t.Context(), "g", src, "/x/", CopyOptions{MaxBytes: 10}); CodeOf(err) != "too_large" {
		t.Fatalf("got %v, want too_large", err)
	}
	if err := <-f.left; err == nil {
		t.Fatal("half a copy ended as a whole one does")
	}
	for _, to := range []string{"", "rel", "/", "/a\x00b"} {
		if err := c.Put(t.Context(), "g", src, to, CopyOptions{}); to != "/" && CodeOf(err) != "bad_path" {
			t.Errorf("to %q: %v", to, err)
		}
	}
}

func TestLinkStays(t *testing.T) {
	for _, tc := range []struct {
		name, target string
		want         bool
	}{
		{"top/l", "f", true},
		{"top/l", "d/f", true},
		{"top/l", "./d//f", true},
		{"top/d/l", "../f", true},
		{"top/d/e/l", "../../f", true},
		{"top/l", ".", true},
		{"top", "f", false},
		{"top/l", "..", false},
		{"top/d/l", "../..", false},
		{"top/l", "../top/f", false},
		{"top/l", "d/..", false},
		{"top/d/l", "x/../../f", false},
		{"top/l", "/f", false},
		{"top/l", "", false},
		{"top/l", `..\f`, false},
		{"top/l", "C:f", false},
		{"top/l", "a\x00", false},
	} {
		if got := linkStays(tc.name, tc.target); got != tc.want {
			t.Errorf("linkStays(%q, %q) = %v", tc.name, tc.target, got)
		}
	}
}

// FuzzGet plays any row of entries into a folder and looks at everything that
// lies outside.
func FuzzGet(f *testing.F) {
	f.Add("d\x00src\x01d\x00src/d\x01l\x00src/l\x02d\x01r\x00src/l/f")
	f.Add("d\x00src\x01d\x00src/a\x01l\x00src/a/u\x02..\x01l\x00src/l\x02a/u/..\x01r\x00src/l/canary")
	f.Add("r\x00../canary")
	f.Add("l\x00src\x02..\x01r\x00src/canary")
	f.Fuzz(func(t *testing.T, script string) {
		outer := t.TempDir()
		dst := filepath.Join(outer, "dst")
		os.Mkdir(dst, 0o755)
		os.WriteFile(filepath.Join(outer, "canary"), []byte("untouched"), 0o600)
		root, err := os.OpenRoot(dst)
		if err != nil {
			t.Fatal(err)
		}
		o := CopyOptions{}
		o.fill()
		g := &getter{o: o, name: "src", dirs: []openDir{{root: root}}}
		for _, line := range strings.Split(script, "\x01") {
			kind, rest, _ := strings.Cut(line, "\x00")
			name, target, _ := strings.Cut(rest, "\x02")
			e := &api.File{Name: name, Mode: 0o777}
			switch kind {
			case "d":
				e.Type = api.FileType_FILE_TYPE_DIRECTORY
			case "l":
				e.Type, e.Target = api.FileType_FILE_TYPE_SYMLINK, target
			default:
				e.Type, e.Size = api.FileType_FILE_TYPE_REGULAR, 1
			}
			if g.entry(e) != nil {
				break
			}
			if e.Size > 0 && g.data([]byte("x")) != nil {
				break
			}
		}
		g.end()
		g.close()
		root.Close()
		es, err := os.ReadDir(outer)
		if err != nil || len(es) != 2 {
			t.Fatalf("outside there is now %v (%v)", es, err)
		}
		if b, err := os.ReadFile(filepath.Join(outer, "canary")); err != nil || string(b) != "untouched" {
			t.Fatalf("the canary says %q (%v)", b, err)
		}
		// Whatever links were made: following them all does not lead out.
		filepath.WalkDir(dst, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type() == fs.ModeSymlink {
				if real, err := filepath.EvalSymlinks(p); err == nil && real != dst && !strings.HasPrefix(real, dst+"/src") {
					t.Errorf("%q leads to %q", p, real)
				}
			}
			if strings.HasPrefix(d.Name(), ".carrel-") {
				t.Errorf("%q was left behind", p)
			}
			return nil
		})
	})
}
