package agent

import (
	"os"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// TestReviewDrop: one change is forgotten, and the others are not; by no name
// is anything outside the layer touched.
func TestReviewDrop(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	sources(t, dir)
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true, Layer: "x"},
		&wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/ro", ReadOnly: true})
	h.good(script + "; rm -r src; mkdir src; echo mine >src/two; ln -s " + scratchDir + " out")
	write(t, scratchDir+"/canary", "alive")
	r, e := h.review("/run/w")
	if e != "" {
		t.Fatal(e)
	}
	for _, nothing := range []string{
		"", ".", "..", "../canary", "/etc", "a/../../b", "a//b", "a/", "x\x00", strings.Repeat("x/", 2100) + "x", "out/canary", "none", "none/none", "edit/x", "dir2link/x",
	} {
		if e := r.drop(nothing); e != "" {
			t.Errorf("%s: %s", nothing, e)
		}
	}
	if b, err := os.ReadFile(scratchDir + "/canary"); string(b) != "alive" {
		t.Errorf("%q, %v", b, err)
	}
	if got := h.good("cat /run/w/edit; ls /run/w/src"); got != "edit of the host\nmore\ntwo\n" {
		t.Errorf("control: %q", got)
	}
	// The folder that hid the host's shows it again, with what is left of the
	// guest's; one that the host has not stays as long as there is something
	// in it.
	if e := r.drop("edit", "gone", "src", "very", "mode"); e != "" {
		t.Error(e)
	}
	if got := h.good("cd /run/w; cat edit gone src/two; ls src; ls very; stat -c %a mode"); got != "edit of the host\ngone of the host\nmine\ndeep\none\ntwo\nnew\n644\n" {
		t.Errorf("%q", got)
	}
	if e := r.drop("very", "very/new", "very/new/tree", "very/new/tree/t", "src/two"); e != "" {
		t.Error(e)
	}
	if got := h.good("cd /run/w; cat src/two; test ! -e very; cat large | wc -c"); got != "src/two of the host\n700000\n" {
		t.Errorf("%q", got)
	}
	if e := r.drop(); e != "" { // all of it
		t.Error(e)
	}
	if got, want := look(t, "/run/w"), look(t, dir); got != want {
		t.Errorf("all is forgotten, and the guest sees\n%s\nnot\n%s", got, want)
	}
	for at, want := range map[string]string{"/run/ro": "no layer", "/run/none": "no share", "": "no share"} {
		if _, e := h.review(at); !strings.Contains(e, want) {
			t.Errorf("a review of %q: %q", at, e)
		}
	}
	// The test driver's guests have no layers.
	if _, e := ready(t).review("/run/w"); !strings.Contains(e, "no layer") {
		t.Errorf("%q", e)
	}
}

// TestReviewDropLate: what the guest goes on to change is not lost with what the
// host knows of it.
func TestReviewDropLate(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	sources(t, dir)
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true, Layer: "x"})
	task := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "cd /run/w; echo 1 >edit; echo 1 >mode; echo 1 >file2dir; echo 1 >src/one; rm gone; exec 3>>log; echo up; read x; echo 2 >&3; cat log"}, Stdin: true})
	task.until("up\n")
	r, e := h.review("/run/w")
	if e != "" {
		t.Fatal(e)
	}
	h.good("cd /run/w; echo longer >edit; rm mode; rm file2dir; mkdir file2dir")
	if e := r.drop(r.names()...); !strings.Contains(e, "4 changes stay") {
		t.Errorf("%q", e)
	}
	if got := h.good("cd /run/w; cat edit src/one gone; ls -d file2dir/; test ! -e mode; cat log"); got != "longer\nsrc/one of the host\ngone of the host\nfile2dir/\n" {
		t.Errorf("%q", got)
	}
	task.stdin("\n")
	task.closeStdin()
	task.wait()
	task.wantOut("up\n2\n")
	// A removal that was forgotten, and is done again, is another.
	stamp := func() string {
		r, e := h.review("/run/w")
		if e != "" {
			t.Fatal(e)
		}
		for _, c := range r.list {
			if c.Name == "gone" {
				if e := r.drop("gone"); e != "" {
					t.Error(e)
				}
				return string(c.Stamp)
			}
		}
		t.Error("the removal is not listed")
		return ""
	}
	h.good("cd /run/w; rm gone")
	one := stamp()
	h.good("cd /run/w; rm gone")
	if two := stamp(); one == two {
		t.Error("two removals have one stamp")
	}
}
