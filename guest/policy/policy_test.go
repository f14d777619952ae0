package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

// world is a home with a project, and Carrel's own folders, none of it real.
type world struct{ top, home, project, own string }

func newWorld(t *testing.T) world {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := world{top: top, home: filepath.Join(top, "home"), own: filepath.Join(top, "home", "carrel")}
	w.project = filepath.Join(w.home, "src", "project")
	for _, d := range []string{w.project, filepath.Join(w.own, "state"), filepath.Join(w.home, ".ssh", "deep")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w world) rules() Rules { return Default(w.home, w.own) }

func decide(w world, shares ...*api.Share) (*Grant, error) {
	return Decide(&api.GuestSpec{Name: "g", Shares: shares}, w.rules())
}

func TestGrantFillsDefaults(t *testing.T) {
	w := newWorld(t)
	g, err := decide(w, &api.Share{Path: w.project})
	if err != nil {
		t.Fatal(err)
	}
	s := g.Spec()
	if s.Cpus != DefaultCPUs || s.MemoryMib != DefaultMemoryMiB || s.DiskMib != DefaultDiskMiB || s.Image != DefaultImage {
		t.Errorf("defaults: %v", s)
	}
	if s.Shares[0].Mode != api.ShareMode_SHARE_MODE_REVIEW || s.Shares[0].GuestPath != w.project {
		t.Errorf("share: %v", s.Shares[0])
	}
	c := g.Config(Parts{Dir: "/d", Kernel: "/k", Initrd: "/i", Root: "/r"})
	if err := c.Check(); err != nil || !c.Shares[0].ReadOnly {
		t.Errorf("config: %v %v", err, c)
	}
	s.Shares[0].Mode = api.ShareMode_SHARE_MODE_RW
	if g.Spec().Shares[0].Mode != api.ShareMode_SHARE_MODE_REVIEW {
		t.Error("a grant can be changed from outside")
	}
}

// The zero Rules allow nothing.
func TestNoRulesNoGuest(t *testing.T) {
	if _, err := Decide(&api.GuestSpec{Name: "g"}, Rules{}); err == nil {
		t.Fatal("granted without rules")
	}
	if _, err := Decide(nil, Rules{}); err == nil {
		t.Fatal("granted nothing at all")
	}
}

// S18, S02: the roots that nobody means to share, and links. The control is the
// project itself, which is granted.
func TestDangerousRoots(t *testing.T) {
	w := newWorld(t)
	link := filepath.Join(w.home, "link")
	if err := os.Symlink(w.project, link); err != nil {
		t.Fatal(err)
	}
	linkdir := filepath.Join(w.home, "linkdir")
	if err := os.Symlink(filepath.Dir(w.project), linkdir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.project, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := decide(w, &api.Share{Path: w.project}); err != nil {
		t.Fatalf("control: %v", err)
	}
	for path, why := range map[string]string{
		"/":                                    "whole part",
		"/proc":                                "system",
		"/etc/ssl":                             "system",
		"/var/run":                             "system",
		w.home:                                 "home directory",
		w.top:                                  "", // contains both the home and Carrel's own
		filepath.Join(w.home, ".ssh"):          "~/.ssh",
		filepath.Join(w.home, ".ssh", "deep"):  "~/.ssh",
		w.own:                                  "Carrel's own",
		filepath.Join(w.own, "state"):          "Carrel's own",
		link:                                   "symbolic link",
		filepath.Join(linkdir, "project"):      "symbolic link",
		file:                                   "not a folder",
		filepath.Join(w.home, "gone"):          "does not exist",
		w.project + "/":                        "clean",
		w.project + "/../project":              `".."`,
		"src/project":                          "absolute",
		"":                                     "empty",
		"/a\x00b":                              "control",
		"/a\nb":                                "control",
		"/" + strings.Repeat("a/", 3000) + "b": "longer",
		"/\xff":                                "UTF-8",
	} {
		_, err := decide(w, &api.Share{Path: path})
		var r *Refusal
		if !errors.As(err, &r) {
			t.Errorf("%.60q was granted: %v", path, err)
			continue
		}
		if !strings.Contains(r.Error(), why) {
			t.Errorf("%.60q: %q does not say %q", path, r.Error(), why)
		}
		if strings.ContainsAny(r.Error(), "\x00\n") {
			t.Errorf("%.60q: the refusal repeats control characters", path)
		}
	}
}

func TestGuestPaths(t *testing.T) {
	w := newWorld(t)
	for _, ok := range []string{"/src", "/work/a b", "/home/carrel/x", "/procession"} {
		if _, err := decide(w, &api.Share{Path: w.project, GuestPath: ok}); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"/", "/proc", "/proc/x", "/sys", "/dev/shm", "/usr", "/usr/local", "/etc", "/run/carrel", "/lib", "rel", "/a/../b", "/a//b", "/a/", "/a\\b", "/a\x00"} {
		if _, err := decide(w, &api.Share{Path: w.project, GuestPath: bad}); err == nil {
			t.Errorf("%q was granted", bad)
		}
	}
	if _, err := decide(w, &api.Share{Path: w.project, GuestPath: "/a"}, &api.Share{Path: w.project, GuestPath: "/a"}); err == nil {
		t.Error("two shares at one place were granted")
	}
}

// A04: one validator for names; A07: sizes.
func TestNamesAndSizes(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "two-words", "0", strings.Repeat("a", 31)} {
		if _, err := Decide(&api.GuestSpec{Name: name}, w.rules()); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "..", "a/b", "-a", "A", "é", "a\x00", "a b", strings.Repeat("a", 32), strings.Repeat("a", 4096), "CON", "a.b"} {
		if _, err := Decide(&api.GuestSpec{Name: name}, w.rules()); err == nil {
			t.Errorf("%.40q was granted", name)
		}
		if _, err := Decide(&api.GuestSpec{Name: "a", Image: name}, w.rules()); err == nil && name != "" && name != "a/b" {
			t.Errorf("image %.40q was granted", name)
		}
	}
	// An image may also be a reference to a registry's; what could be a path or a flag is none.
	for _, name := range []string{"python:3.13", "a/b", "localhost:5000/a/b:c", "docker.io/library/python:3.13@sha256:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64)} {
		if _, err := Decide(&api.GuestSpec{Name: "a", Image: name}, w.rules()); err != nil {
			t.Errorf("image %q: %v", name, err)
		}
	}
	for _, name := range []string{"/etc/passwd", "../a:b", "a/../b:c", "a//b:c", "a/./b:c", "-a:b", ":a", "@sha256:0", "a:b\n", "a:b c", "a:é", "a\\b:c", "a:" + strings.Repeat("b", 512)} {
		if _, err := Decide(&api.GuestSpec{Name: "a", Image: name}, w.rules()); err == nil {
			t.Errorf("image %.40q was granted", name)
		}
	}
	for _, s := range []*api.GuestSpec{
		{Cpus: 65}, {Cpus: 1<<32 - 1}, {MemoryMib: 1}, {MemoryMib: 1<<32 - 1}, {DiskMib: 1}, {DiskMib: 1<<32 - 1},
		{Shares: make([]*api.Share, 65)}, {Shares: []*api.Share{nil}},
		{Shares: []*api.Share{{Path: w.project, Mode: 9}}},
	} {
		s.Name = "a"
		if _, err := Decide(s, w.rules()); err == nil {
			t.Errorf("%.200v was granted", s)
		}
	}
}

// A folder that is replaced between two decisions has another pin.
func TestPinSeesReplacement(t *testing.T) {
	w := newWorld(t)
	a, err := decide(w, &api.Share{Path: w.project})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.project, w.project+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.project, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := decide(w, &api.Share{Path: w.project})
	if err != nil {
		t.Fatal(err)
	}
	if a.Pins()[0] == b.Pins()[0] {
		t.Fatal("two folders have one pin")
	}
}

func FuzzGuestPath(f *testing.F) {
	f.Add("/src")
	f.Add("/proc/../x")
	f.Fuzz(func(t *testing.T, p string) {
		if checkGuestPath(p) != nil {
			return
		}
		for _, o := range ofGuest {
			if filepath.Clean(p) == o || strings.HasPrefix(filepath.Clean(p), o+"/") {
				t.Fatalf("%q covers %s", p, o)
			}
		}
	})
}
