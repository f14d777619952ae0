package agent

import (
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// sources fills a folder as a project has it.
func sources(t *testing.T, dir string) {
	t.Helper()
	for _, f := range []string{"edit", "gone", "mode", "again/x", "again/deep/y", "moved/a", "moved/b/c", "file2dir", "dir2file/z", "dir2link/z", "src/one", "src/two", "src/deep/three", "away/q", "cow/short", "cow/punched", "cow/dd"} {
		write(t, dir+"/"+f, f+" of the host\n")
	}
	if err := os.Symlink("edit", dir+"/link"); err != nil {
		t.Fatal(err)
	}
}

// script is what a guest may do to it.
const script = `cd /run/w
echo more >>edit; rm gone; chmod 751 mode; rm -r again; mkdir again; echo new >again/n; mkdir -p again/deep/er
mv moved moved2; mv src/one src/uno; rm file2dir; mkdir file2dir; echo i >file2dir/i; rm -r dir2file; echo f >dir2file
rm -r dir2link; ln -s ../../etc/passwd dir2link; ln -sf other link; ln edit hard; mkfifo pipe; chmod 700 src/deep
mkdir -p very/new/tree; echo t >very/new/tree/t; : >empty; head -c 700000 /dev/zero >large; rm -r away
touch "sp ace" 'new
line' ünïcode; mkdir same; rmdir same; echo x >src/two; cp -p src/two src/2
truncate -s 3 cow/short; fallocate -p -o 0 -l 4 cow/punched; printf zz | dd of=cow/dd conv=notrunc 2>/dev/null`

// TestReview: what a layer lists, and holds, is the difference between what the
// guest sees and what the host has.
func TestReview(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	sources(t, dir)
	was := look(t, dir)
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true, Layer: "x"})
	r, e := h.review("/run/w")
	if e != "" || len(r.list) > 0 {
		t.Errorf("an untouched layer: %v %s", r.list, e)
	}
	h.good(script)
	sees := look(t, "/run/w")
	if look(t, dir) != was {
		t.Error("the host's folder has changed")
	}
	if r, e = h.review("/run/w/"); e != "" {
		t.Fatal(e)
	}
	kinds := r.kinds()
	for name, want := range map[string]string{
		"edit": "REGULAR", "gone": "REMOVED", "mode": "REGULAR", "again": "NEW_DIRECTORY", "again/deep": "NEW_DIRECTORY", "again/deep/er": "NEW_DIRECTORY", "again/x": "",
		"moved": "REMOVED", "moved2": "NEW_DIRECTORY", "moved2/b/c": "REGULAR", "src": "DIRECTORY", "src/deep": "DIRECTORY", "src/deep/three": "",
		"file2dir": "NEW_DIRECTORY", "dir2file": "REGULAR", "dir2link": "SYMLINK", "pipe": "OTHER", "very/new": "NEW_DIRECTORY", "away": "REMOVED", "same": "", "hard": "REGULAR",
	} {
		if kinds[name] != want {
			t.Errorf("%s is %q, want %q", name, kinds[name], want)
		}
	}
	seen := make(map[string]bool)
	for i, c := range r.list {
		if p := path.Dir(c.Name); p != "." && !seen[p] {
			t.Errorf("%s comes before its folder", c.Name)
		}
		if seen[c.Name] || path.Clean(c.Name) != c.Name || c.Mode > 0o777 || len(c.Stamp) == 0 {
			t.Errorf("entry %v", c)
		}
		seen[c.Name] = true
		if _, e := r.content(i); (e == "") != (c.Type == wire.ChangedType_CHANGED_TYPE_REGULAR) {
			t.Errorf("content of %s: %q", c.Name, e)
		}
	}
	// What is asked for at once comes in that order, and leaves together.
	var order []int
	for i := range r.list {
		order = append(order, len(r.list)-1-i)
		r.send(&wire.Reviewing{Kind: &wire.Reviewing_Want{Want: &wire.Want{Index: uint32(len(r.list) - 1 - i)}}})
	}
	together := make([]string, len(order))
	for n := range order {
		b, e := r.answer()
		together[n] = string(b) + "\x00" + e
	}
	for n, i := range order {
		if b, e := r.content(i); together[n] != string(b)+"\x00"+e {
			t.Errorf("%s has another content when it is asked for with others", r.list[i].Name)
		}
	}
	if _, e := r.content(len(r.list)); e == "" {
		t.Error("content of no entry")
	}
	if _, e := r.content(1 << 31); e == "" {
		t.Error("content of no entry")
	}
	// A task that is in it from before. What it had open of what the host replaces would be
	// stale to everybody a second later, until it is closed (docs/sharing.md).
	task := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "cd /run/w/src; echo up; read x; echo on >made; ls; cat two; pwd -P"}, Stdin: true})
	task.until("up\n")
	r.apply(dir)
	if got := look(t, dir); got != sees {
		t.Errorf("the host has\n%s\nthe guest sees\n%s", got, sees)
	}
	if got := look(t, dir); got == was {
		t.Error("control: nothing changed")
	}
	// Forgotten in full, it is the host's; a task that is in it stays.
	if e := r.drop(r.names()...); e != "" {
		t.Fatal(e)
	}
	if got, want := look(t, "/run/w"), look(t, dir); got != want {
		t.Errorf("all is forgotten, and the guest sees\n%s\nnot\n%s", got, want)
	}
	task.stdin("\n")
	task.closeStdin()
	task.wait()
	task.wantOut("up\n2\ndeep\nmade\ntwo\nuno\nx\n/run/w/src\n")
	again, e := h.review("/run/w")
	for name, kind := range again.kinds() {
		if kind != "DIRECTORY" && name != "src/made" {
			t.Errorf("%s %s is left", kind, name)
		}
	}
	if e != "" {
		t.Error(e)
	}
}

// TestReviewNames: what cannot be said as it is, is shown and not entered.
func TestReviewNames(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	write(t, dir+"/f", "x")
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true, Layer: "x"})
	h.good(`cd /run/w; rm f; long=$(printf %0250d 0); printf x >"$(printf 'caf\351')"; mkdir "$(printf 'd\377')"; echo y >"$(printf 'd\377/in')"; ln -s "$(printf 'caf\351')" link
		mkdir deep long; (cd deep; for i in $(seq 200); do mkdir x; cd x; done; echo z >end); (cd long; for i in $(seq 16); do mkdir $long; cd $long; done; echo z >end); echo last >plain`)
	r, e := h.review("/run/w")
	if e != "" {
		t.Fatal(e)
	}
	kinds, deepest := r.kinds(), 0
	for name, want := range map[string]string{`caf\xe9`: "OTHER", `d\xff`: "OTHER", `d\xff/in`: "", "link": "OTHER", "deep": "NEW_DIRECTORY", "plain": "REGULAR", "f": "REMOVED"} {
		if kinds[name] != want {
			t.Errorf("%s is %q, want %q", name, kinds[name], want)
		}
	}
	for i, c := range r.list {
		parts := strings.Count(c.Name, "/") + 1
		if deepest = max(deepest, parts); parts > maxChangeDepth || len(c.Name) >= maxName {
			t.Errorf("a name of %d parts, %d bytes", parts, len(c.Name))
		}
		if _, e := r.content(i); (e == "") != (c.Type == wire.ChangedType_CHANGED_TYPE_REGULAR) {
			t.Errorf("content of %s: %q", c.Name, e)
		}
	}
	if deepest != maxChangeDepth {
		t.Errorf("the deepest name has %d parts", deepest)
	}
}

// TestReviewStamp: an entry's stamp changes with it, and else does not.
func TestReviewStamp(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	sources(t, dir)
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true, Layer: "x"})
	h.good("cd /run/w; rm gone; echo a >edit; echo a >same; touch -d 2020-01-01 edit same")
	stamps := func() map[string]string {
		r, e := h.review("/run/w")
		if e != "" {
			t.Fatal(e)
		}
		m := make(map[string]string)
		for _, c := range r.list {
			m[c.Name] = string(c.Stamp)
		}
		return m
	}
	tick := racy
	racy = time.Hour
	early := stamps() // within the clock's tick, as it seems, so not to be relied upon
	racy = tick
	time.Sleep(2 * racy)
	one := stamps()
	if early["edit"] == one["edit"] {
		t.Error("a stamp that was given within a tick of the change is given again")
	}
	if two := stamps(); two["edit"] != one["edit"] || two["same"] != one["same"] {
		t.Error("stamps change on their own")
	}
	h.good("cd /run/w; rm -r away; echo b >edit; touch -d 2020-01-01 edit") // same size, same time
	time.Sleep(2 * racy)
	if three := stamps(); three["edit"] == one["edit"] || three["same"] != one["same"] || three["gone"] != one["gone"] || three["away"] == "" {
		t.Error("the stamps do not tell what has changed")
	}
}
