package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestManifests refuses what is not an image that runs; the control is the same image unchanged.
func TestManifests(t *testing.T) {
	good := someImage(t)
	fetch := func(manifest []byte, more ...[]byte) error {
		m := &made{blobs: map[string][]byte{}, manifest: manifest}
		for d, b := range good.blobs {
			m.blobs[d] = b
		}
		m.add(typeManifest, manifest)
		for _, b := range more {
			m.add("", b)
		}
		_, err := Open(t.TempDir()).Fetch(t.Context(), Layout(layoutOf(t, m, "it"), "it"), amd64, nil)
		return err
	}
	if err := fetch(good.manifest); err != nil {
		t.Fatal(err)
	}
	text := string(good.manifest)
	swap := func(old, new string) []byte {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in it", old)
		}
		return []byte(strings.Replace(text, old, new, 1))
	}
	d, _ := parseManifest(good.manifest)
	l0, size0 := d.Layers[0].Digest, fmt.Sprintf(`"size":%d`, d.Layers[0].Size)
	for name, c := range map[string]struct {
		manifest []byte
		want     error
	}{
		"nothing":               {[]byte("{}"), ErrMalformed},
		"no JSON":               {[]byte("<html>"), ErrMalformed},
		"two documents":         {append(good.manifest, "{}"...), ErrMalformed},
		"schema 1":              {swap(`"schemaVersion":2`, `"schemaVersion":1`), ErrUnsupported},
		"schema 3":              {swap(`"schemaVersion":2`, `"schemaVersion":3`), ErrMalformed},
		"an index as well":      {swap(`"schemaVersion":2`, `"schemaVersion":2,"manifests":[]`), ErrMalformed},
		"another media type":    {swap(typeManifest, typeIndex), ErrUnsupported},
		"no layers":             {[]byte(text[:strings.Index(text, `"layers"`)] + `"layers":[],"mediaType":"` + typeManifest + `","schemaVersion":2}`), ErrMalformed},
		"an unknown layer":      {swap(typeLayer+"+gzip", typeLayer+"+br"), ErrUnsupported},
		"a foreign layer":       {swap(typeLayer+"+gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"), ErrUnsupported},
		"an artifact":           {swap(typeConfig, "application/vnd.cncf.helm.config.v1+json"), ErrUnsupported},
		"an empty config":       {swap(typeConfig, "application/vnd.oci.empty.v1+json"), ErrUnsupported},
		"sha512":                {swap(l0, "sha512:"+strings.Repeat("0", 128)), ErrUnsupported},
		"a path for a digest":   {swap(l0, "sha256:../../../../../../../../../../../../../../../../etc/passwd-pad"), ErrMalformed},
		"a digest in capitals":  {swap(l0, strings.ToUpper(l0)), ErrUnsupported},
		"another size":          {swap(size0, fmt.Sprintf(`"size":%d`, d.Layers[0].Size+1)), ErrDamaged},
		"a negative size":       {swap(size0, `"size":-1`), ErrMalformed},
		"no size":               {swap(size0, `"size":0`), ErrMalformed},
		"an exabyte":            {swap(size0, `"size":1152921504606846976`), ErrTooBig},
		"a size with a comma":   {swap(size0, `"size":1.5`), ErrMalformed},
		"a layer that is not":   {swap(l0, "sha256:"+strings.Repeat("0", 64)), ErrNotFound},
		"one digest, two sizes": {swap(d.Layers[1].Digest, l0), ErrMalformed},
		"layers swapped":        {swap(l0, d.Config.Digest), ErrDamaged},
		"1,000 layers":          {swap(`"layers":[`, `"layers":[`+strings.Repeat(`{"mediaType":"`+typeLayer+`","digest":"`+l0+`","size":1},`, 1000)), ErrTooBig},
		"5 MB":                  {swap(`"schemaVersion":2`, `"schemaVersion":2,"x":"`+strings.Repeat("x", 5<<20)+`"`), ErrTooBig},
	} {
		if err := fetch(c.manifest); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	config := string(good.config)
	for name, c := range map[string]struct {
		old, new string
		want     error
	}{
		"unchanged":          {`"os"`, `"os"`, nil},
		"a field more":       {`"os"`, `"x":1,"os"`, nil},
		"another platform":   {`"amd64"`, `"riscv64"`, ErrNotFound},
		"no platform":        {`"amd64"`, `""`, ErrMalformed},
		"a string for Cmd":   {`["-v"]`, `"-v"`, ErrMalformed},
		"a number for User":  {`"1000:1000"`, `1000`, ErrMalformed},
		"a long User":        {`"1000:1000"`, `"` + strings.Repeat("u", 300) + `"`, ErrMalformed},
		"NUL in Cmd":         {`"-v"`, `"a\u0000b"`, ErrMalformed},
		"NUL in WorkingDir":  {`"/w"`, `"/w\u0000"`, ErrMalformed},
		"Env without a key":  {`"A=b"`, `"=b"`, ErrMalformed},
		"Env without =":      {`"A=b"`, `"A"`, ErrMalformed},
		"10,000 of Env":      {`"A=b"`, `"A=b"` + strings.Repeat(`,"A=b"`, 10_000), ErrTooBig},
		"a long string":      {`"-v"`, `"` + strings.Repeat("x", 200<<10) + `"`, ErrTooBig},
		"many long strings":  {`"-v"`, `"-v"` + strings.Repeat(`,"`+strings.Repeat("x", 100<<10)+`"`, 11), ErrTooBig},
		"5 MB":               {`"os"`, `"x":"` + strings.Repeat("x", 5<<20) + `","os"`, ErrTooBig},
		"one diff_id less":   {`,"` + digestOf(unpackedOf(t, good.blobs[d.Layers[1].Digest])) + `"`, ``, ErrMalformed},
		"a bad diff_id":      {digestOf(unpackedOf(t, good.blobs[d.Layers[1].Digest])), `md5:x`, ErrUnsupported},
		"no JSON":            {`{`, ``, ErrMalformed},
		"another's diff_ids": {digestOf(unpackedOf(t, good.blobs[d.Layers[0].Digest])), "sha256:" + strings.Repeat("0", 64), nil}, // seen when it is unpacked: below
	} {
		if !strings.Contains(config, c.old) {
			t.Fatalf("%s: %q is not in it", name, c.old)
		}
		changed := []byte(strings.Replace(config, c.old, c.new, 1))
		m := strings.Replace(text, digestOf(good.config), digestOf(changed), 1)
		m = strings.Replace(m, fmt.Sprintf(`"size":%d`, len(config)), fmt.Sprintf(`"size":%d`, len(changed)), 1)
		if err := fetch([]byte(m), changed); !errors.Is(err, c.want) {
			t.Errorf("config: %s: %v, want %v", name, err, c.want)
		}
	}
}

func unpackedOf(t testing.TB, blob []byte) []byte {
	t.Helper()
	r, err := decompress(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDiffID: a layer whose tar is not the one that the config names is found when it is unpacked.
func TestDiffID(t *testing.T) {
	b := Open(t.TempDir())
	img, err := b.Fetch(t.Context(), Layout(layoutOf(t, someImage(t), ""), ""), amd64, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := writeRoot(t, b, img, Limits{}); err != nil {
		t.Fatal(err)
	}
	img.Layers[0].DiffID, img.Layers[1].DiffID = img.Layers[1].DiffID, img.Layers[0].DiffID
	if _, _, err := writeRoot(t, b, img, Limits{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}

// TestIndexes chooses by platform, through indexes, and neither for ever nor among too many.
func TestIndexes(t *testing.T) {
	good := someImage(t)
	entry := func(b []byte, mediaType, os, arch, variant string) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": digestOf(b), "size": len(b), "platform": map[string]string{"os": os, "architecture": arch, "variant": variant}}
	}
	index := func(entries ...any) []byte {
		return marshal(t, map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": entries})
	}
	fetch := func(p Platform, top []byte, more ...[]byte) (*Image, error) {
		m := &made{blobs: good.blobs, manifest: good.manifest}
		for _, b := range append(more, top) {
			m.add("", b)
		}
		dir := layoutOf(t, m, "it")
		writeFile(t, filepath.Join(dir, "index.json"), top)
		return Open(t.TempDir()).Fetch(t.Context(), Layout(dir, ""), p, nil)
	}
	plain := entry(good.manifest, typeManifest, "linux", "amd64", "")
	bare := map[string]any{"mediaType": typeManifest, "digest": digestOf(good.manifest), "size": len(good.manifest)}
	attestation := entry(good.manifest, typeManifest, "unknown", "unknown", "")
	other := entry([]byte("nothing"), typeManifest, "linux", "arm64", "v8")
	nested := func(n int) (top []byte, all [][]byte) {
		top = index(plain)
		for range n {
			all = append(all, top)
			top = index(entry(top, typeIndex, "linux", "amd64", ""))
		}
		return top, all
	}
	for name, top := range map[string][]byte{
		"one": index(plain), "among others": index(attestation, other, plain), "without a platform": index(bare),
		"with what is no image": index(map[string]any{"mediaType": "application/vnd.x", "digest": "x", "size": -1}, plain),
	} {
		if img, err := fetch(amd64, top); err != nil || img.Digest != digestOf(good.manifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	top, all := nested(3)
	if _, err := fetch(amd64, top, all...); err != nil {
		t.Errorf("three indexes deep: %v", err)
	}
	top, all = nested(8)
	if _, err := fetch(amd64, top, all...); !errors.Is(err, ErrTooBig) {
		t.Errorf("eight indexes deep: %v", err)
	}
	many := make([]any, 100_000)
	for i := range many {
		many[i] = plain
	}
	for name, c := range map[string]struct {
		top  []byte
		want error
	}{
		"not for us": {index(other), ErrNotFound}, "empty": {index([]any{}...), ErrNotFound}, "two without a platform": {index(bare, bare), ErrNotFound},
		"altered":          {index(entry([]byte("altered"), typeManifest, "linux", "amd64", "")), ErrNotFound},
		"another size":     {index(map[string]any{"mediaType": typeManifest, "digest": digestOf(good.manifest), "size": 5, "platform": map[string]string{"os": "linux", "architecture": "amd64"}}), ErrDamaged},
		"an index of many": {index(many...), ErrTooBig},
		"a manifest of 1 GB": {index(map[string]any{"mediaType": typeManifest, "digest": digestOf(good.manifest), "size": 1 << 30,
			"platform": map[string]string{"os": "linux", "architecture": "amd64"}}), ErrTooBig},
	} {
		if _, err := fetch(amd64, c.top); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, c := range []struct {
		has, want Platform
		ok        bool
	}{
		{amd64, amd64, true},
		{Platform{"linux", "arm64", "v8"}, Platform{"linux", "arm64", ""}, true},
		{Platform{"linux", "arm64", ""}, Platform{"linux", "arm64", "v8"}, true},
		{Platform{"linux", "arm", "v6"}, Platform{"linux", "arm", "v7"}, false},
		{Platform{"linux", "arm", "v7"}, Platform{"linux", "arm", ""}, true},
		{Platform{"windows", "amd64", ""}, amd64, false},
	} {
		if fits(c.has, c.want) != c.ok {
			t.Errorf("%v for %v", c.has, c.want)
		}
	}
}

// archiveOf writes a tar as docker save did: a config, layers in folders, manifest.json.
func archiveOf(t testing.TB, pack func([]byte) []byte, entries ...e) string {
	path := filepath.Join(t.TempDir(), "image.tar")
	b := layerOf(t, entries...)
	if pack != nil {
		b = pack(b)
	}
	writeFile(t, path, b)
	return path
}

// TestTarballs takes docker archives, layouts in tars, packed ones, and nothing that leads out of the archive.
func TestTarballs(t *testing.T) {
	layer := layerOf(t, e{name: "f", body: "f"})
	m := imageOf(t, `{"Cmd":["sh"]}`, nil, layer, layer)
	docker := []e{{name: "c.json", body: string(m.config)}, {name: "1/layer.tar", body: string(layer)},
		{name: "2/layer.tar", kind: tar.TypeSymlink, link: "../1/layer.tar"},
		{name: "manifest.json", body: `[{"Config":"c.json","RepoTags":["it:latest"],"Layers":["1/layer.tar","2/layer.tar"]}]`}}
	var oci []e
	dir := layoutOf(t, m, "it")
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			body, _ := os.ReadFile(path)
			name, _ := filepath.Rel(dir, path)
			oci = append(oci, e{name: "./" + filepath.ToSlash(name), body: string(body)})
		}
		return err
	})
	fetch := func(path string) (*Image, error) {
		b := Open(t.TempDir())
		img, err := b.Fetch(t.Context(), Tarball(path), amd64, nil)
		if left, _ := os.ReadDir(filepath.Join(b.dir, "tmp")); len(left) > 0 {
			t.Errorf("%v stays in tmp", left)
		}
		if err == nil {
			_, _, err = writeRoot(t, b, img, Limits{})
		}
		return img, err
	}
	for name, path := range map[string]string{
		"docker": archiveOf(t, nil, docker...), "docker, gzip": archiveOf(t, gzipped, docker...), "layout": archiveOf(t, nil, oci...), "layout, zstd": archiveOf(t, zstded, oci...),
	} {
		if img, err := fetch(path); err != nil || len(img.Layers) != 2 || img.Config.Cmd[0] != "sh" {
			t.Errorf("%s: %v", name, err)
		}
	}
	with := func(manifest string, more ...e) string {
		return archiveOf(t, nil, append(append([]e(nil), docker[:2]...), append(more, e{name: "manifest.json", body: manifest})...)...)
	}
	if _, err := fetch(with(`[{"Config":"c.json","Layers":["1/layer.tar","1/layer.tar"]}]`)); err != nil {
		t.Errorf("the control of the following: %v", err)
	}
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"no manifest":       {archiveOf(t, nil, docker[:2]...), ErrMalformed},
		"a path that leads": {with(`[{"Config":"c.json","Layers":["../../../../../../etc/passwd","1/layer.tar"]}]`), ErrMalformed},
		"a link that leads": {with(`[{"Config":"c.json","Layers":["l","1/layer.tar"]}]`, e{name: "l", kind: tar.TypeSymlink, link: "/etc/passwd"}), ErrMalformed},
		"links in a circle": {with(`[{"Config":"c.json","Layers":["l","1/layer.tar"]}]`, e{name: "l", kind: tar.TypeSymlink, link: "l"}), ErrMalformed},
		"two images":        {with(`[{"Config":"c.json","Layers":["1/layer.tar"]},{"Config":"c.json","Layers":["1/layer.tar"]}]`), ErrMalformed},
		"one layer less":    {with(`[{"Config":"c.json","Layers":["1/layer.tar"]}]`), ErrMalformed},
		"another layer":     {with(`[{"Config":"c.json","Layers":["1/layer.tar","o"]}]`, e{name: "o", body: string(layerOf(t, e{name: "o"}))}), ErrDamaged},
		"no layers":         {with(`[{"Config":"c.json","Layers":[]}]`), ErrMalformed},
		"no tar":            {archiveOf(t, func([]byte) []byte { return bytes.Repeat([]byte("no"), 5000) }), ErrMalformed},
		"no file":           {filepath.Join(t.TempDir(), "none"), os.ErrNotExist},
	} {
		if _, err := fetch(c.path); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// Cut anywhere: refused, or whole (the end of a tar is padding), never half.
	whole, err := os.ReadFile(archiveOf(t, nil, docker...))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		path := filepath.Join(t.TempDir(), "cut.tar")
		writeFile(t, path, whole[:len(whole)*i/100])
		if img, err := fetch(path); err == nil && len(img.Layers) != 2 {
			t.Errorf("cut at %d %%: %+v", i, img)
		} else if err == nil && i < 70 {
			t.Errorf("cut at %d %%: taken", i)
		}
	}
}

// TestLayoutLinks: a link in a layout that leads out of its folder is not followed; one inside is.
func TestLayoutLinks(t *testing.T) {
	m := someImage(t)
	for _, out := range []bool{true, false} {
		dir := layoutOf(t, m, "it")
		d, _ := parseManifest(m.manifest)
		blob := filepath.Join(dir, "blobs", "sha256", d.Layers[0].Digest[len("sha256:"):])
		to := filepath.Join(dir, "moved")
		link := "../../moved"
		if out {
			to = filepath.Join(t.TempDir(), "outside")
			link = to
		}
		if err := errors.Join(os.Rename(blob, to), os.Symlink(link, blob)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.TempDir()).Fetch(t.Context(), Layout(dir, "it"), amd64, nil)
		if (err != nil) != out {
			t.Errorf("leads out: %v: %v", out, err)
		}
	}
	if _, err := Open(t.TempDir()).Fetch(t.Context(), Layout(layoutOf(t, m, "it"), "that"), amd64, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("another tag: %v", err)
	}
	if _, err := Open(t.TempDir()).Fetch(t.Context(), Layout(layoutOf(t, m, "it"), digestOf(m.manifest)), amd64, nil); err != nil {
		t.Errorf("by digest: %v", err)
	}
}

// TestDamagedStore flips a byte of every blob and cuts every blob: it is named when it is used, and fetched anew.
func TestDamagedStore(t *testing.T) {
	m := someImage(t)
	layout := layoutOf(t, m, "it")
	b := Open(t.TempDir())
	fetch := func() *Image {
		img, err := b.Fetch(t.Context(), Layout(layout, ""), amd64, nil)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := fetch()
	for d, blob := range m.blobs {
		path := b.path(d[len("sha256:"):])
		flipped := bytes.Clone(blob)
		flipped[len(blob)/2] ^= 1
		for what, bad := range map[string][]byte{"flipped": flipped, "cut": blob[:len(blob)-1], "empty": nil, "longer": append(bytes.Clone(blob), 0)} {
			writeFile(t, path, bad)
			_, err := b.Load(img.Digest)
			if err == nil {
				_, _, err = writeRoot(t, b, img, Limits{})
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), d) {
				t.Errorf("%s %s: %v", what, d, err)
			}
			fetch()
			if got, _ := os.ReadFile(path); !bytes.Equal(got, blob) {
				t.Errorf("%s %s: not mended", what, d)
			}
		}
		os.Remove(path)
		if _, err := b.Load(img.Digest); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s is gone: %v", d, err)
		}
		fetch()
	}
	if _, err := b.Load("sha256:../../x"); !errors.Is(err, ErrMalformed) {
		t.Errorf("a path for a digest: %v", err)
	}
}

// TestPrune keeps what the kept images need, and waits for who holds the store.
func TestPrune(t *testing.T) {
	shared := layerOf(t, e{name: "shared", body: "s"})
	one, two := imageOf(t, "", nil, shared, layerOf(t, e{name: "1"})), imageOf(t, "", nil, shared, layerOf(t, e{name: "2"}))
	b := Open(t.TempDir())
	for _, m := range []*made{one, two} {
		if _, err := b.Fetch(t.Context(), Layout(layoutOf(t, m, "it"), ""), amd64, nil); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(b.dir, "partial", "left"), []byte("left"))
	keep := []string{digestOf(one.manifest), "sha256:" + strings.Repeat("0", 64)}
	release, err := b.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Prune(short, keep, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("under a hold: %v", err)
	}
	release()
	release()
	want := Freed{Blobs: 3, Partials: 1, Bytes: 4}
	for d, blob := range two.blobs {
		if one.blobs[d] == nil {
			want.Bytes += int64(len(blob))
		}
	}
	for _, dry := range []bool{true, false} {
		if got, err := b.Prune(t.Context(), keep, dry); err != nil || got != want {
			t.Errorf("dry %v: %+v, %v, want %+v", dry, got, err, want)
		}
	}
	if _, err := b.Load(digestOf(one.manifest)); err != nil {
		t.Error(err)
	}
	if _, err := b.Load(digestOf(two.manifest)); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if got, err := b.Prune(t.Context(), keep, false); err != nil || got != (Freed{}) {
		t.Errorf("again: %+v, %v", got, err)
	}
}

// TestKilled kills a process at random instants of a fetch and of the writing of a root. Whatever is
// visible in the store then is whole, and the next process finishes the work.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("CARREL_TEST_OCI"); dir != "" {
		b := Open(filepath.Join(dir, "blobs"))
		img, err := b.Fetch(t.Context(), Layout(filepath.Join(dir, "layout"), ""), amd64, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := writeRoot(t, b, img, Limits{}); err != nil {
			t.Fatal(err)
		}
		return
	}
	var layers [][]byte
	for i := range 4 {
		layers = append(layers, layerOf(t, e{name: fmt.Sprint(i), body: strings.Repeat(fmt.Sprintf("%d:%p", i, t), 300_000)}))
	}
	m := imageOf(t, "", nil, layers...)
	dir := t.TempDir()
	if err := os.Rename(layoutOf(t, m, ""), filepath.Join(dir, "layout")); err != nil {
		t.Fatal(err)
	}
	theirs := t.TempDir() // who is killed leaves its own
	run := func(after time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestKilled$")
		cmd.Env = append(os.Environ(), "CARREL_TEST_OCI="+dir, "TMPDIR="+theirs)
		out, err := cmd.CombinedOutput()
		if err != nil && ctx.Err() == nil {
			t.Fatalf("%v: %s", err, out)
		}
		return err
	}
	begun := time.Now()
	if err := run(10 * time.Minute); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(begun)
	b := Open(filepath.Join(dir, "blobs"))
	killed := 0
	const times = 6
	for i := range times {
		os.RemoveAll(b.dir)
		begun := time.Now()
		if run(whole*time.Duration(i+1)/(times+1)) != nil {
			killed++
		} else {
			whole = time.Since(begun) // the machine has more time for it than before
		}
		entries, _ := os.ReadDir(filepath.Dir(b.path("x")))
		for _, f := range entries {
			if got, err := os.ReadFile(b.path(f.Name())); err != nil || digestOf(got) != "sha256:"+f.Name() {
				t.Errorf("blob %s: %d bytes, %v", f.Name(), len(got), err)
			}
		}
		if _, err := b.Load(digestOf(m.manifest)); err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if i%3 == 0 {
			if err := run(10 * time.Minute); err != nil {
				t.Error(err)
			}
		}
	}
	if killed < times/3 {
		t.Errorf("only %d of %d were killed before they were done", killed, times)
	}
	if _, err := b.Prune(t.Context(), nil, false); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"tmp", "partial", "blobs/sha256"} {
		if left, _ := os.ReadDir(filepath.Join(b.dir, sub)); len(left) > 0 {
			t.Errorf("%s has %v", sub, left)
		}
	}
}
