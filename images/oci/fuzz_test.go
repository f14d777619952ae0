package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	oracle "github.com/erofs/go-erofs"
)

// FuzzLayer reads any bytes as a layer. What is taken for one makes a root, twice the same.
func FuzzLayer(f *testing.F) {
	f.Add(layerOf(f, e{name: "a/b", body: "x"}, e{name: "a/.wh.b"}, e{name: "l", kind: tar.TypeSymlink, link: "a"}, e{name: "l/c", body: "c"}))
	f.Add(layerOf(f, e{name: "h", body: "x", xattrs: map[string]string{"user.a": "b"}}, e{name: "i", kind: tar.TypeLink, link: "h"}, e{name: "d/.wh..wh..opq"}))
	f.Add(gzipped(layerOf(f, e{name: "a", body: "x"})))
	f.Add(zstded(layerOf(f, e{name: "a", body: "x"})))
	f.Add(oldSparse(f, 2))
	f.Fuzz(func(t *testing.T, data []byte) {
		lim := Limits{Bytes: 1 << 20, Content: 1 << 20, Entries: 1000}.orDefault()
		var roots [2][]byte
		for i := range roots {
			sp, err := newSpool(t.TempDir(), lim.Content)
			if err != nil {
				t.Fatal(err)
			}
			defer sp.close()
			u := &unpacker{tree: newTree(sp, lim.Entries), lim: lim}
			u.begin(0, int64(len(data)))
			err = u.layer(context.Background(), bytes.NewReader(data), "", func(int64) {})
			if err == nil {
				t.Fatal("a layer without a digest was taken")
			}
			if !errors.Is(err, ErrDamaged) { // which comes last, when all the rest was good
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooBig) {
					t.Fatalf("%v is of no kind", err)
				}
				return
			}
			roots[i] = erofsOf(t, u.tree, false)
		}
		if !bytes.Equal(roots[0], roots[1]) {
			t.Error("the same layer gives two roots")
		}
	})
}

// erofsOf writes a tree and returns the bytes; with check, fsck.erofs reads them.
func erofsOf(t testing.TB, tr *tree, check bool) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stats Stats
	n, err := writeErofs(context.Background(), tr, f, &stats, func(int64, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	if check {
		fsck(t, f.Name())
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	if err != nil || int64(len(b)) != n || n%blockSize != 0 {
		t.Fatalf("%d bytes, said to be %d: %v", len(b), n, err)
	}
	return b
}

// FuzzErofs builds trees by orders drawn from the input, applies them also to a model, a map of paths, and
// reads what was written by another implementation, go-erofs: files, contents and links must be the model's.
func FuzzErofs(f *testing.F) {
	f.Add([]byte("\x00\x10abc\x01\x20def\x02\x05x"))
	f.Add(bytes.Repeat([]byte("\x00\xffname"), 50))
	f.Add(bytes.Repeat([]byte("\x01\x03d\x00\x40f"), 30))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 600 {
			return
		}
		sp, err := newSpool(t.TempDir(), 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer sp.close()
		tr := newTree(sp, 10_000)
		tr.most = 8 << 20
		model := map[string]string{} // a directory ends in a slash
		dir := ""
		next := func() (c byte) {
			if len(data) > 0 {
				c, data = data[0], data[1:]
			}
			return c
		}
		for len(data) > 0 {
			order, n := next(), int(next())
			name := strings.Repeat(fmt.Sprintf("%02x", next()), 1+n/3) + fmt.Sprint(order>>3)
			path := dir + name
			h := &tar.Header{Name: path, Mode: 0o644, Typeflag: tar.TypeReg}
			body := strings.Repeat("b", n*n) // to 65,025: some blocks and a part
			switch order % 4 {
			case 0:
				h.Size = int64(len(body))
			case 1:
				h.Typeflag, h.Mode = tar.TypeDir, 0o755
			case 2:
				h.Typeflag, h.Linkname = tar.TypeSymlink, strings.Repeat("t", 1+n*15)
			case 3:
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": body}
			}
			had := model[path+"/"] != ""
			if err := tr.apply(h, strings.NewReader(body[:h.Size])); err != nil {
				if errors.Is(err, ErrTooBig) || errors.Is(err, ErrMalformed) {
					return
				}
				t.Fatal(err)
			}
			if order%4 != 1 || !had {
				for p := range model {
					if p == path || strings.HasPrefix(p, path+"/") {
						delete(model, p)
					}
				}
			}
			switch order % 4 {
			case 0:
				model[path] = "file " + body
			case 1:
				model[path+"/"] = "dir"
				if strings.Count(dir, "/") < 6 {
					dir = path + "/"
				} else {
					dir = ""
				}
			case 2:
				model[path] = "link " + h.Linkname
			case 3:
				model[path] = "file "
			}
		}
		// By itself, each input is read by fsck.erofs too; under the fuzzer that would be most of the time.
		img, err := oracle.Open(bytes.NewReader(erofsOf(t, tr, flag.Lookup("test.fuzz").Value.String() == "")))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		err = fs.WalkDir(img, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == "." {
				return err
			}
			switch {
			case d.IsDir():
				got[p+"/"] = "dir"
			case d.Type() == fs.ModeSymlink:
				to, err := fs.ReadLink(img, p)
				got[p] = "link " + to
				return err
			default:
				b, err := fs.ReadFile(img, p)
				got[p] = "file " + string(b)
				return err
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for p, what := range model {
			if got[p] != what {
				t.Errorf("%s: got %.40q of %d bytes, want %.40q of %d", clip(p), got[p], len(got[p]), what, len(what))
			}
			delete(got, p)
		}
		for p := range got {
			t.Errorf("%s should not be there", clip(p))
		}
	})
}

// FuzzManifest reads any bytes as a manifest, an index and a config. What passes is within the bounds.
func FuzzManifest(f *testing.F) {
	m := someImage(f)
	f.Add(m.manifest)
	f.Add(m.config)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + typeManifest + `","digest":"` + digestOf(nil) + `","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := parseManifest(data); err == nil {
			for _, l := range append(d.Layers, d.Config) {
				if sum, err := checkDigest(l.Digest); err != nil || filepath.Base(sum) != sum || l.Size <= 0 || l.Size > maxBlob {
					t.Errorf("passed: %+v", l)
				}
			}
			if len(d.Layers) == 0 || len(d.Layers) > maxLayers || d.Manifests != nil {
				t.Errorf("passed: %+v", d)
			}
		}
		if d, err := parseDocument(data); err == nil && d.isIndex() {
			if c, err := choose(d, amd64); err == nil && c.check(maxManifest) != nil {
				t.Errorf("chosen: %+v", c)
			}
		}
		for n := range 3 {
			c, p, diffs, err := parseConfig(data, n)
			if err != nil {
				continue
			}
			if len(diffs) != n || p.OS == "" || p.Arch == "" {
				t.Errorf("passed: %v %v", p, diffs)
			}
			for _, e := range c.Env {
				if strings.IndexByte(e, '=') < 1 || strings.IndexByte(e, 0) >= 0 {
					t.Errorf("passed: %q", e)
				}
			}
		}
	})
}
