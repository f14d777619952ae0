package egresstest

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strings"
	"testing"
	"time"
)

// The one package that each registry has, version 1.0.0. What it says when it is
// used is PackageWord.
const (
	NPMPackage    = "carrel-word"
	GoModule      = "github.com/carrel-vm/word"
	DebianPackage = "carrel-word"
	PyPIPackage   = "carrel-word"
	PackageWord   = "a word from the registry"
)

// Registry is what the registries hand out, made once.
type Registry struct {
	tarball, modZip, deb, wheel []byte
	goMod                       string
	built                       time.Time
}

func newRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{goMod: "module " + GoModule + "\n\ngo 1.20\n", built: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	r.tarball = r.tarGz(t, "package/", map[string]string{
		"package.json": fmt.Sprintf(`{"name":%q,"version":"1.0.0","main":"index.js"}`, NPMPackage),
		"index.js":     fmt.Sprintf("module.exports = %q;\n", PackageWord),
	})
	r.modZip = r.zip(t, GoModule+"@v1.0.0/", map[string]string{
		"go.mod":  r.goMod,
		"word.go": fmt.Sprintf("package word\n\n// Word is the word.\nconst Word = %q\n", PackageWord),
	})
	r.wheel = r.zip(t, "", map[string]string{
		"carrel_word.py":                        fmt.Sprintf("WORD = %q\n", PackageWord),
		"carrel_word-1.0.0.dist-info/METADATA":  "Metadata-Version: 2.1\nName: carrel-word\nVersion: 1.0.0\n",
		"carrel_word-1.0.0.dist-info/WHEEL":     "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		"carrel_word-1.0.0.dist-info/RECORD":    "carrel_word.py,,\ncarrel_word-1.0.0.dist-info/METADATA,,\ncarrel_word-1.0.0.dist-info/WHEEL,,\ncarrel_word-1.0.0.dist-info/RECORD,,\n",
		"carrel_word-1.0.0.dist-info/INSTALLER": "hand\n",
	})
	r.deb = ar([]string{"debian-binary", "control.tar.gz", "data.tar.gz"}, [][]byte{
		[]byte("2.0\n"),
		r.tarGz(t, "./", map[string]string{"control": r.control()}),
		r.tarGz(t, "./", map[string]string{"usr/share/carrel-word/word": PackageWord + "\n"}),
	})
	return r
}

func (r *Registry) control() string {
	return "Package: " + DebianPackage + "\nVersion: 1.0.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\nDescription: a word\n"
}

// GoSum is the go.sum that belongs to the module, by which the go command needs
// no checksum database.
func (r *Registry) GoSum() string {
	return fmt.Sprintf("%[1]s v1.0.0 %[2]s\n%[1]s v1.0.0/go.mod %[3]s\n", GoModule,
		h1(map[string]string{GoModule + "@v1.0.0/go.mod": r.goMod, GoModule + "@v1.0.0/word.go": unzip(r.modZip, GoModule+"@v1.0.0/word.go")}),
		h1(map[string]string{"go.mod": r.goMod}))
}

// h1 is the hash of golang.org/x/mod/sumdb/dirhash.
func h1(files map[string]string) string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	all := sha256.New()
	for _, n := range names {
		fmt.Fprintf(all, "%s  %s\n", sum([]byte(files[n])), n)
	}
	return "h1:" + base64.StdEncoding.EncodeToString(all.Sum(nil))
}

// npm speaks the registry's protocol: the packument, and the tarball.
func (r *Registry) npm() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /"+NPMPackage, func(w http.ResponseWriter, q *http.Request) {
		s := sha512.Sum512(r.tarball)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"name": NPMPackage, "dist-tags": map[string]string{"latest": "1.0.0"},
			"versions": map[string]any{"1.0.0": map[string]any{
				"name": NPMPackage, "version": "1.0.0", "main": "index.js",
				"dist": map[string]string{
					"tarball":   "https://registry.npmjs.org/" + NPMPackage + "/-/" + NPMPackage + "-1.0.0.tgz",
					"integrity": "sha512-" + base64.StdEncoding.EncodeToString(s[:]),
				},
			}},
		})
	})
	mux.HandleFunc("GET /"+NPMPackage+"/-/"+NPMPackage+"-1.0.0.tgz", r.file(r.tarball))
	return mux
}

// goModules speaks GOPROXY's protocol.
func (r *Registry) goModules() http.Handler {
	mux := http.NewServeMux()
	at := "GET /" + GoModule + "/@v/"
	mux.HandleFunc(at+"list", r.file([]byte("v1.0.0\n")))
	mux.HandleFunc(at+"v1.0.0.info", r.file(fmt.Appendf(nil, `{"Version":"v1.0.0","Time":%q}`, r.built.Format(time.RFC3339))))
	mux.HandleFunc(at+"v1.0.0.mod", r.file([]byte(r.goMod)))
	mux.HandleFunc(at+"v1.0.0.zip", r.file(r.modZip))
	return mux
}

// debian serves an unsigned repository: the one component of the one suite.
func (r *Registry) debian() http.Handler {
	const pool = "pool/main/c/carrel-word/carrel-word_1.0.0_all.deb"
	packages := fmt.Appendf(nil, "%sFilename: %s\nSize: %d\nSHA256: %s\n\n", r.control(), pool, len(r.deb), sum(r.deb))
	release := "Origin: the world\nSuite: stable\nCodename: bookworm\nDate: " + r.built.Format(time.RFC1123) + "\nArchitectures: amd64 all\nComponents: main\nSHA256:\n"
	for _, p := range []string{"main/binary-amd64/Packages", "main/binary-all/Packages"} {
		release += fmt.Sprintf(" %s %d %s\n", sum(packages), len(packages), p)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debian/dists/bookworm/Release", r.file([]byte(release)))
	mux.HandleFunc("GET /debian/dists/bookworm/main/binary-amd64/Packages", r.file(packages))
	mux.HandleFunc("GET /debian/dists/bookworm/main/binary-all/Packages", r.file(packages))
	mux.HandleFunc("GET /debian/"+pool, r.file(r.deb))
	return mux
}

// pypi serves the simple index and the file that it points to.
func (r *Registry) pypi() http.Handler {
	const file = "carrel_word-1.0.0-py3-none-any.whl"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /simple/"+PyPIPackage+"/", func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!DOCTYPE html><html><body><a href=\"https://files.pythonhosted.org/packages/%s#sha256=%s\">%s</a></body></html>", file, sum(r.wheel), file)
	})
	mux.HandleFunc("GET /packages/"+file, r.file(r.wheel))
	return mux
}

func (r *Registry) file(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		http.ServeContent(w, q, "", r.built, bytes.NewReader(b))
	}
}

func (r *Registry) tarGz(t testing.TB, prefix string, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	made := map[string]bool{}
	add := func(h *tar.Header, text string) {
		h.ModTime, h.Format = r.built, tar.FormatGNU
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range sorted(files) {
		for i, c := range name {
			if dir := name[:i]; c == '/' && !made[dir] {
				made[dir] = true
				add(&tar.Header{Name: prefix + dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
			}
		}
		add(&tar.Header{Name: prefix + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}, files[name])
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (r *Registry) zip(t testing.TB, prefix string, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range sorted(files) {
		f, err := z.CreateHeader(&zip.FileHeader{Name: prefix + name, Method: zip.Deflate, Modified: r.built})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unzip(b []byte, name string) string {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return ""
	}
	f, err := z.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	var out bytes.Buffer
	out.ReadFrom(f)
	return out.String()
}

// ar is the archive that a .deb is.
func ar(names []string, files [][]byte) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for i, name := range names {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(files[i]))
		b.Write(files[i])
		if len(files[i])%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

func sorted(files map[string]string) []string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Forms are the ways in which a credential could lie about: as it is, in base64
// at each of the three offsets, in hex and escaped.
func Forms(secret string) []string {
	forms := []string{secret, hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for off := range 3 {
			s := enc.EncodeToString(append(make([]byte, off), secret...))
			// The characters at both ends also depend on what stands beside it.
			forms = append(forms, s[min(len(s), off*4/3+1):len(s)-1])
		}
	}
	return forms
}
