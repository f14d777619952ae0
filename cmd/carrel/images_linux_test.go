package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

// Images of a registry, as a person uses them: the registry is go-containerregistry's, on loopback, and the
// images are made here. The scripts run behind the process wall, behind gVisor and on a real machine, and the
// cache is the test's own: of the default image it has the kernel and the initrd, which is all that is used.

const imageScripts = "testdata/images"

func TestImagesProcess(t *testing.T) { imagesBehind(t, "process") }
func TestImagesGVisor(t *testing.T)  { imagesBehind(t, "gvisor") }
func TestImagesVM(t *testing.T)      { imagesBehind(t, "vm") }

func imagesBehind(t *testing.T, wall string) {
	if testing.Short() {
		t.Skip("the third ring needs a built image and real walls: make test runs it")
	}
	bin := buildPrograms(t, []string{"./cmd/carrel", "./cmd/carreld"}, []string{"./cmd/carrel-agent"})
	probe := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-o", probe, "./testdata/imageprobe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	host := newRegistry(t, probe)
	cache := kernelCache(t)
	h, err := newHome(bin, cache)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	})
	files, err := filepath.Glob(filepath.Join(imageScripts, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in %s: %v", imageScripts, err)
	}
	p := testscript.Params{
		Files: files, WorkdirRoot: t.TempDir(), Condition: ring(true, wall == "vm"),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ends": ends, "json": isJSON,
			"retag": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(retag(host, args[0], args[1])) },
			"layout": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(toLayout(host, args[0], ts.MkAbs(args[1])))
			},
			"tarfile": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(toTarball(host, args[0], ts.MkAbs(args[1])))
			},
			"renew":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(renew(cache, args[0])) },
			"spoil":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(spoil(cache, args[0], args[1])) },
			"damage": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(damage(cache, ts.ReadFile(args[0]))) },
			"mend":   mend,
		},
		Setup: func(env *testscript.Env) error {
			h.enter(env)
			env.Setenv("REG", host)
			env.Setenv("WALL", wall)
			return nil
		},
	}
	testscript.Run(t, p)
}

// kernelCache is a cache whose default image has the kernel and the initrd of the one that make image has
// built, and a root that is of no use.
func kernelCache(t *testing.T) string {
	t.Helper()
	from, to := filepath.Join(imageCache(t), "images/default"), filepath.Join(t.TempDir(), "cache/images/default")
	text, err := os.ReadFile(filepath.Join(from, "manifest.json"))
	if err != nil {
		t.Fatalf("%v (make image)", err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, x := range m["parts"].([]any) {
		p := x.(map[string]any)
		file := p["name"].(string)
		b := []byte("no root\n")
		if file != "root.erofs" {
			if b, err = os.ReadFile(filepath.Join(from, file)); err != nil {
				t.Fatal(err)
			}
		}
		p["sha256"], p["size"] = fmt.Sprintf("%x", sha256.Sum256(b)), len(b)
		if err := os.WriteFile(filepath.Join(to, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What was found out of this machine need not be found out again.
	for _, known := range []string{"accelerator.json", "gvisor.json"} {
		if b, err := os.ReadFile(filepath.Join(imageCache(t), known)); err == nil {
			if err := os.WriteFile(filepath.Join(filepath.Dir(filepath.Dir(to)), known), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if text, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "manifest.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	// The same by other names, to be published: nothing starts from them. One says that it is for another architecture.
	for name, arch := range map[string]any{"mine": m["arch"], "theirs": "arm64"} {
		m["name"], m["arch"] = name, arch
		if text, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(filepath.Dir(to), name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"vmlinuz", "initrd", "root.erofs"} {
			if err := os.Link(filepath.Join(to, file), filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "manifest.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Dir(filepath.Dir(to))
}

// entry is a file of a layer: a folder where the name ends in a slash, a link where there is a target.
type entry struct {
	name, target string
	content      []byte
	mode         int64
}

func layer(entries ...entry) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Typeflag: tar.TypeReg}
		switch {
		case e.target != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.target
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

func imageOf(c v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	f, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Config = "linux", "amd64", c
	return mutate.ConfigFile(img, f)
}

// newRegistry serves these images, under a name with a port of loopback:
//
//	busybox:1   a shell and its tools, a user, a folder, a variable and a command
//	busybox:2   the same and one file more
//	store:1     the same again, for one script alone
//	probe:1     one static program, and no other file
//	odd:1       that, in a root whose mount points are links and files, and that is a user's
func newRegistry(t *testing.T, probe string) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v (scripts/setup installs it: busybox-static)", err)
	}
	files := []entry{
		{name: "bin/"}, {name: "bin/busybox", content: busybox}, {name: "etc/"},
		{name: "etc/passwd", mode: 0o644, content: []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1234:1234::/srv:/bin/sh\n")},
		{name: "etc/group", mode: 0o644, content: []byte("root:x:0:\napp:x:1234:\nother:x:77:\n")},
		{name: "srv/"}, {name: "tmp/", mode: 0o1777}, {name: "root/", mode: 0o700},
	}
	for _, n := range []string{"sh", "id", "ls", "cat", "echo", "pwd", "true", "sleep", "env", "touch", "stat", "wget", "ln", "chmod"} {
		files = append(files, entry{name: "bin/" + n, target: "busybox"})
	}
	base, err := layer(files...)
	check(err)
	more, err := layer(entry{name: "second", mode: 0o644, content: []byte("two\n")})
	check(err)
	own, err := layer(entry{name: "own", mode: 0o644, content: []byte("own\n")})
	check(err)
	c := v1.Config{
		Env: []string{"PATH=/bin", "GREETING=hello"}, User: "app", WorkingDir: "/srv",
		Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"echo image says $GREETING as $(id -u) in $(pwd)"},
	}
	program, err := os.ReadFile(probe)
	check(err)
	alone, err := layer(entry{name: "probe", content: program})
	check(err)
	odd, err := layer(entry{name: "probe", content: program},
		entry{name: "dev", target: "/etc"}, entry{name: "run", target: "/nowhere"}, entry{name: "proc", mode: 0o644, content: []byte("a file\n")}, entry{name: "sys", target: "../../../.."})
	check(err)
	for tag, make := range map[string]func() (v1.Image, error){
		"busybox:1": func() (v1.Image, error) { return imageOf(c, base) },
		"store:1":   func() (v1.Image, error) { return imageOf(c, base, own) },
		"busybox:2": func() (v1.Image, error) { return imageOf(c, base, more) },
		"probe:1": func() (v1.Image, error) {
			return imageOf(v1.Config{Entrypoint: []string{"/probe"}, Cmd: []string{"one", "two"}}, alone)
		},
		"odd:1": func() (v1.Image, error) {
			return imageOf(v1.Config{Cmd: []string{"/probe"}, User: "4321:77", Env: []string{"GREETING=odd", "SSL_CERT_FILE=/nonsense"}}, odd)
		},
	} {
		img, err := make()
		check(err)
		check(push(host, tag, img))
	}
	return host
}

func parse(host, tag string) (name.Reference, error) { return name.ParseReference(host + "/" + tag) }

func push(host, tag string, img v1.Image) error {
	r, err := parse(host, tag)
	if err != nil {
		return err
	}
	return remote.Write(r, img)
}

func pulled(host, tag string) (v1.Image, error) {
	r, err := parse(host, tag)
	if err != nil {
		return nil, err
	}
	return remote.Image(r)
}

// retag lets the tag to lead to what from leads to.
func retag(host, from, to string) error {
	img, err := pulled(host, from)
	if err != nil {
		return err
	}
	return push(host, to, img)
}

func toLayout(host, tag, dir string) error {
	img, err := pulled(host, tag)
	if err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return p.AppendImage(img)
}

func toTarball(host, tag, file string) error {
	img, err := pulled(host, tag)
	if err != nil {
		return err
	}
	r, err := name.NewTag("tools:1")
	if err != nil {
		return err
	}
	return tarball.WriteToFile(file, r, img)
}

// renew makes another image of a built one: of the same parts, at another time.
func renew(cache, image string) error {
	path := filepath.Join(cache, "images", image, "manifest.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	m["created"] = "2026-01-02T03:04:05Z"
	if b, err = json.Marshal(m); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// spoil alters one byte of a part of a built image, or of one that a bundle has brought.
func spoil(cache, image, part string) error {
	path := filepath.Join(cache, "images", image, part)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	if err := os.Remove(path); err != nil { // a link to the cache of builds
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// damage alters one byte of the root of the image whose digest, or pinned reference, is given.
func damage(cache, pinned string) error {
	_, digest, _ := strings.Cut(strings.TrimSpace(pinned), "@")
	path := filepath.Join(cache, "images", strings.ReplaceAll(digest, ":", "-"), "root.erofs")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(path, b, 0o600)
}

// mend runs the command that the last error said would mend it.
func mend(ts *testscript.TestScript, _ bool, _ []string) {
	_, rest, ok := strings.Cut(ts.ReadFile("stderr"), "to mend it: ")
	line, _, _ := strings.Cut(rest, "\n")
	words := strings.Fields(line)
	if !ok || len(words) < 4 || words[0] != "carrel" {
		ts.Fatalf("no command was said: %q", line)
	}
	n := 4 // and a flag more, where there is one
	if strings.HasPrefix(words[3], "--") {
		n++
	}
	ts.Check(ts.Exec("carrel", words[1:n]...))
}
