package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestPaths refuses paths that no layer has; the same name without the trick is taken.
func TestPaths(t *testing.T) {
	for _, bad := range []string{"../x", "/x", "a/../../b", "./..", "a/..", "..", "", "x\x00y", "/../x", "a/../b",
		strings.Repeat("n", 256), strings.Repeat("a/", 300) + "x", strings.Repeat("abc/", 1025) + "x"} {
		if _, _, err := split(bad); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooBig) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
	for good, want := range map[string][2]string{
		"x": {"", "x"}, "./x": {"", "x"}, "a//b/": {"a", "b"}, "./": {"", ""}, "/": {"", ""}, "a/./b": {"a", "b"},
		`a\b`: {"", `a\b`}, `C:\x`: {"", `C:\x`}, `..\x`: {"", `..\x`}, "...": {"", "..."}, "..x/y": {"..x", "y"},
		strings.Repeat("n", 255): {"", strings.Repeat("n", 255)},
	} {
		if parent, base, err := split(good); err != nil || [2]string{parent, base} != want {
			t.Errorf("%.40q: %q, %q, %v", good, parent, base, err)
		}
	}
}

// TestHostileLayers refuses each as a whole. TestRoot is the control: an image of honest entries of every kind.
func TestHostileLayers(t *testing.T) {
	ok := e{name: "ok", body: "ok"}
	for name, c := range map[string]struct {
		tar  []byte
		want error
	}{
		"up":                       {layerOf(t, ok, e{name: "../x", body: "x"}), ErrMalformed},
		"absolute":                 {layerOf(t, ok, e{name: "/etc/x", body: "x"}), ErrMalformed},
		"up and down":              {layerOf(t, e{name: "a/../../b"}), ErrMalformed},
		"hard link up":             {layerOf(t, e{name: "h", kind: tar.TypeLink, link: "../../etc/passwd"}), ErrMalformed},
		"hard link absolute":       {layerOf(t, e{name: "h", kind: tar.TypeLink, link: "/etc/passwd"}), ErrMalformed},
		"hard link to nothing":     {layerOf(t, e{name: "h", kind: tar.TypeLink, link: "etc/passwd"}), ErrMalformed},
		"hard link to itself":      {layerOf(t, e{name: "h", kind: tar.TypeLink, link: "h"}), ErrMalformed},
		"hard link to a directory": {layerOf(t, e{name: "d/"}, e{name: "h", kind: tar.TypeLink, link: "d"}), ErrMalformed},
		"hard link through a link": {layerOf(t, e{name: "l", kind: tar.TypeSymlink, link: "/etc"}, e{name: "h", kind: tar.TypeLink, link: "l/passwd"}), ErrMalformed},
		"hard link over its own":   {layerOf(t, e{name: "d/f", body: "f"}, e{name: "d", kind: tar.TypeLink, link: "d/f"}), ErrMalformed},
		"through a file":           {layerOf(t, ok, e{name: "ok/x", body: "x"}), ErrMalformed},
		"links in a circle":        {layerOf(t, e{name: "a", kind: tar.TypeSymlink, link: "b"}, e{name: "b", kind: tar.TypeSymlink, link: "a"}, e{name: "a/x"}), ErrMalformed},
		"whiteout of the parent":   {layerOf(t, e{name: "d/.wh..."}), ErrMalformed},
		"whiteout of itself":       {layerOf(t, e{name: "d/.wh.."}), ErrMalformed},
		"whiteout of nothing":      {layerOf(t, e{name: "d/.wh."}), ErrMalformed},
		"whiteout up":              {layerOf(t, e{name: "../.wh.x"}), ErrMalformed},
		"the root is a file":       {layerOf(t, e{name: "./", kind: tar.TypeSymlink, link: "x"}), ErrMalformed},
		"a device number":          {layerOf(t, e{name: "d", kind: tar.TypeChar, major: 1 << 20}), ErrMalformed},
		"an unknown type":          {patch(layerOf(t, ok), 156, "Z"), ErrMalformed},
		"a negative size":          {patch(layerOf(t, ok), 124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xf0"), ErrMalformed},
		"a size that is not there": {patch(layerOf(t, ok), 124, "00000777777\x00"), ErrMalformed},
		"no tar":                   {bytes.Repeat([]byte("no tar at all"), 100), ErrMalformed},
		"nothing":                  {[]byte{0}, ErrMalformed},
		"a gigabyte of PAX":        {append(patch(layerOf(t, ok)[:512], 156, "x", 124, "07777777777\x00"), make([]byte, 2<<20)...), ErrMalformed},
		"a long name without end":  {append(patch(layerOf(t, ok)[:512], 156, "L", 124, "07777777777\x00"), bytes.Repeat([]byte("n"), 2<<20)...), ErrMalformed},
		"a sparse map without end": {oldSparse(t, 40_000), ErrMalformed},
		"too many xattrs":          {layerOf(t, e{name: "x", xattrs: manyXattrs(200, 10)}), ErrMalformed},
		"too long xattrs":          {layerOf(t, e{name: "x", xattrs: manyXattrs(100, 1000)}), ErrTooBig},
		"gzip that breaks off":     {gzipped(layerOf(t, ok))[:40], ErrMalformed},
		"gzip in gzip":             {gzipped(gzipped(layerOf(t, ok))), ErrMalformed},
		"a zstd window of 2 GiB":   {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0, 0}, ErrMalformed},
		"zstd that breaks off":     {zstded(layerOf(t, ok))[:40], ErrMalformed},
		"a gzip bomb":              {gzipped(make([]byte, 100<<20)), ErrTooBig},
		"a zstd bomb":              {zstded(make([]byte, 100<<20)), ErrTooBig},
		"a bomb in one file":       {gzipped(layerOf(t, e{name: "zeros", body: strings.Repeat("\x00", 100<<20)})), ErrTooBig},
		"10 TB with holes":         {sparse(t, 10<<40, "pax"), ErrTooBig},
		"10 TB with holes, old":    {sparse(t, 10<<40, "gnu"), ErrTooBig},
		"100 MB with holes":        {sparse(t, 100<<20, "pax"), ErrTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := rootOf(t, imageOf(t, "", nil, c.tar), Limits{})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 64<<20+10*uint64(len(c.tar)) {
				t.Errorf("it took %d MB of memory", (after.TotalAlloc-before.TotalAlloc)>>20)
			}
		})
	}
	for name, layer := range map[string][]byte{
		"the layer itself": layerOf(t, ok), "gzip": gzipped(layerOf(t, ok)), "zstd": zstded(layerOf(t, ok)),
		"10 MB with holes": sparse(t, 10<<20, "pax"), "10 MB with holes, old": sparse(t, 10<<20, "gnu"),
		"a bomb within limits": gzipped(layerOf(t, e{name: "zeros", body: strings.Repeat("\x00", 30<<20)})),
		"xattrs within limits": layerOf(t, e{name: "x", xattrs: manyXattrs(100, 500)}),
	} {
		m := imageOf(t, "", nil, layer)
		if strings.HasPrefix(string(layer), "\x1f\x8b") || strings.HasPrefix(string(layer), "\x28\xb5") || strings.Contains(name, "within") {
			var plain bytes.Buffer
			r, err := decompress(bytes.NewReader(layer))
			if err != nil {
				t.Fatal(err)
			}
			plain.ReadFrom(r)
			m = imageOf(t, "", func([]byte) []byte { return layer }, plain.Bytes())
		}
		if _, _, err := rootOf(t, m, Limits{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// patch replaces bytes of the header at b's start, and mends its sum.
func patch(b []byte, at ...any) []byte {
	b = bytes.Clone(b)
	// The PAX header of the tests' entries comes first, with its record; the entry's own is behind.
	for i := 0; i < len(at); i += 2 {
		copy(b[at[i].(int):], at[i+1].(string))
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func manyXattrs(n, size int) map[string]string {
	all := map[string]string{}
	for i := range n {
		all[fmt.Sprintf("user.n%d", i)] = strings.Repeat("v", size)
	}
	return all
}

// sparse has GNU tar pack a file of size bytes that is one hole.
func sparse(t testing.TB, size int64, format string) []byte {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "holes"), nil)
	if err := os.Truncate(filepath.Join(dir, "holes"), size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-C", dir, "--sparse", "--format="+format, "-cf", "-", "holes").Output()
	if err != nil {
		t.Fatalf("tar: %v", err)
	}
	return out
}

// oldSparse is an old-GNU sparse file whose map goes on for n blocks (CVE-2026-32288).
func oldSparse(t testing.TB, n int) []byte {
	b := patch(layerOf(t, e{name: "s", body: ""})[:512], 257, "ustar  \x00", 156, "S", 482, "\x01", 124, "00000000000\x00", 483, "00000000000\x00")
	more := make([]byte, 512)
	for i := range 21 {
		copy(more[i*24:], "00000000000\x0000000000000\x00")
	}
	more[504] = 1
	return append(b, bytes.Repeat(more, n)...)
}

// TestLimits holds an image that is sound to its Limits, one by one, and takes it when they are as wide as it is.
func TestLimits(t *testing.T) {
	var entries []e
	for i := range 100 {
		entries = append(entries, e{name: fmt.Sprintf("d/%d", i), body: strings.Repeat("x", 1000)})
	}
	tarred := layerOf(t, entries...)
	m := imageOf(t, "", nil, tarred, tarred)
	for name, lim := range map[string]Limits{
		"bytes": {Bytes: int64(2*len(tarred)) - 1}, "content": {Content: 2*100*1000 - 1}, "entries": {Entries: 200},
	} {
		if _, _, err := rootOf(t, m, lim); !errors.Is(err, ErrTooBig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One entry more than the tars have: the directory that they do not name.
	stats, err := func() (Stats, error) {
		_, s, err := rootOf(t, m, Limits{Bytes: int64(2 * len(tarred)), Content: 2 * 100 * 1000, Entries: 201})
		return s, err
	}()
	if err != nil || stats.Entries != 101 || stats.Content != 100*1000 || stats.Unpacked != int64(2*len(tarred)) {
		t.Errorf("%+v, %v", stats, err)
	}
	var names []e
	for i := range 250 {
		names = append(names, e{name: fmt.Sprintf("%s/%d/", strings.Repeat("d/", 200), i)})
	}
	if _, _, err := rootOf(t, imageOf(t, "", nil, layerOf(t, names...)), Limits{}); err != nil {
		t.Errorf("200 directories deep: %v", err)
	}
	// A link makes paths short, not trees shallow.
	deep := []e{{name: "l0", kind: tar.TypeSymlink, link: strings.Repeat("d/", 100)}}
	for i := 1; i <= 3; i++ {
		deep = append(deep, e{name: fmt.Sprintf("l%d", i), kind: tar.TypeSymlink, link: fmt.Sprintf("l%d/%s", i-1, strings.Repeat("d/", 100))})
	}
	if _, _, err := rootOf(t, imageOf(t, "", nil, layerOf(t, append(deep, e{name: "l3/x"})...)), Limits{}); !errors.Is(err, ErrTooBig) {
		t.Errorf("400 directories deep by links: %v", err)
	}
	if _, _, err := rootOf(t, imageOf(t, "", nil, layerOf(t, append(deep, e{name: "l1/x"})...)), Limits{}); err != nil {
		t.Errorf("200 directories deep by links: %v", err)
	}
}

// TestTruncatedLayer cuts a layer at each hundredth: none of the pieces is taken for a layer.
func TestTruncatedLayer(t *testing.T) {
	var entries []e
	for i := range 50 {
		entries = append(entries, e{name: fmt.Sprintf("d/%d", i), body: strings.Repeat(fmt.Sprint(i), 2000)})
	}
	tarred := layerOf(t, entries...)
	for kind, pack := range map[string]func([]byte) []byte{"tar": bytes.Clone, "gzip": gzipped, "zstd": zstded} {
		blob := pack(tarred)
		try := func(part []byte) error {
			sp, err := newSpool(t.TempDir(), 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			defer sp.close()
			u := &unpacker{tree: newTree(sp, 1000), lim: Limits{}.orDefault()}
			u.begin(0, int64(len(part)))
			return u.layer(t.Context(), bytes.NewReader(part), digestOf(tarred), func(int64) {})
		}
		for i := range 100 {
			if err := try(blob[:len(blob)*i/100]); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, cut at %d %%: %v", kind, i, err)
			}
		}
		if err := try(blob); err != nil {
			t.Errorf("%s, whole: %v", kind, err)
		}
	}
}

// TestDeterministic: the same layers give the same bytes, whatever they are packed with, on every host.
func TestDeterministic(t *testing.T) {
	layers := [][]byte{
		layerOf(t, e{name: "b/x", body: strings.Repeat("x", 5000)}, e{name: "a", body: "a"}, e{name: "n", kind: tar.TypeChar, major: 1, minor: 3}),
		layerOf(t, e{name: "b/.wh.x"}, e{name: "b/y", body: "y", xattrs: map[string]string{"user.b": "2", "user.a": "1", "user.c": "3"}}),
	}
	var first []byte
	for i, pack := range []func([]byte) []byte{nil, gzipped, zstded, nil} {
		path, _, err := rootOf(t, imageOf(t, "", pack, layers...), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = b
		} else if !bytes.Equal(b, first) {
			t.Errorf("packing %d gives other bytes", i)
		}
	}
	const want = "sha256:311789e3711804bfe6543d01873784b1da72baac27215513162273fa715a63ea"
	if got := digestOf(first); got != want {
		t.Errorf("the format has changed: %s", got)
	}
}
