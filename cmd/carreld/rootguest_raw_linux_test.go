package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// abort has the guest's kernel give up a share's stream.
func (g *rootRig) abort(t *testing.T, share string) {
	t.Helper()
	if out := g.root(t, "abort", "/s/"+share); out != "" {
		t.Fatalf("%s", out)
	}
}

// S01: the guest's root has mounts of a read-only share that may be written to,
// and writes.
func (g *rootRig) remount(t *testing.T) {
	before, stamp := look(t, g.f.ro), stamps(t, g.f.ro)
	out := g.root(t, "remount /s/ro share0")
	t.Logf("%s", out)
	if !strings.Contains(out, "remount: <nil>") || !strings.Contains(out, `reads "contents\n"`) {
		t.Errorf("control: %s", out)
	}
	if strings.Contains(strings.ReplaceAll(out, "mount: <nil>", ""), " <nil> ") {
		t.Errorf("something was done: %s", out)
	}
	if after := look(t, g.f.ro); after != before || stamps(t, g.f.ro) != stamp {
		t.Errorf("the host's folder was\n%sand is\n%s", before, after)
	}
	g.root(t, "remount /s/plain none") // the control: the same writes, on a share that may be written to
	if got := read(t, filepath.Join(g.f.plain, "made")); got != "EVIL" {
		t.Errorf("control: %q", got)
	}
}

// free runs the program as a root that has left its task's seccomp behind: the
// host's ports are in its reach.
func (g *rootRig) free(t *testing.T, args ...string) string {
	t.Helper()
	return g.root(t, append([]string{"free"}, args...)...)
}

// rawFolder is a folder that is shared by a stream, and its share's tag.
func (g *rootRig) rawFolder(t *testing.T, tag string) string {
	t.Helper()
	dir := filepath.Join(g.w.work, tag)
	fill(t, dir)
	if err := live(t, g.w, g.k, tag, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// S01, S03, S15 on a share that is read only, by raw messages. First the stream
// of a share that is served already is asked for: there is one each.
func (g *rootRig) rawReadOnly(t *testing.T) {
	dir := filepath.Join(g.w.work, "sixth")
	before, stamp := look(t, dir), stamps(t, dir)
	for _, tag := range []string{"share5", "share0", "none", "'../sixth'"} {
		if out := g.free(t, "raw", tag, "wrong", "0"); !strings.Contains(out, "failed: the host ended it") {
			t.Errorf("a stream for %s: %s", tag, out)
		}
	}
	g.abort(t, "sixth")
	out := ""
	eventually(t, "the share waits for a stream", func() bool {
		out = g.free(t, "raw", "share5", "read", "0")
		return !strings.Contains(out, "the host ended it")
	})
	t.Logf("%s", out)
	if strings.Contains(out, "DID") || !strings.Contains(out, `control: read "contents\n"`) || strings.Contains(out, "control: made errno 0") || number(t, out, "tries") < 150 {
		t.Errorf("%s", out)
	}
	if after := look(t, dir); after != before || stamps(t, dir) != stamp {
		t.Errorf("the host's folder was\n%sand is\n%s", before, after)
	}
	g.canaries(t)
}

// The same on a share that may be written, and the race without a kernel between.
func (g *rootRig) raw(t *testing.T) {
	dir := g.rawFolder(t, "rawrw")
	before := look(t, dir)
	g.abort(t, "rawrw")
	out := ""
	eventually(t, "the share waits for a stream", func() bool {
		out = g.free(t, "raw", "rawrw", "write", "0")
		return !strings.Contains(out, "the host ended it")
	})
	t.Logf("%s", out)
	if strings.Contains(out, "DID") || number(t, out, "tries") < 300 {
		t.Errorf("%s", out)
	}
	if got := read(t, filepath.Join(dir, "raw-made")); got != "raw" { // the control
		t.Errorf("control: %q", got)
	}
	os.Remove(filepath.Join(dir, "raw-made"))
	if after := look(t, dir); after != before {
		t.Errorf("the host's folder was\n%sand is\n%s", before, after)
	}
	g.canaries(t)
	g.raced(t, "by raw messages", g.free(t, "raw", "rawrw", "race", strconv.Itoa(scaled(3, 60))))
}

// flood: 600 streams of every wrong kind are held; meanwhile the control path, the
// other shares, a review's import and a share that comes work, and the keeper
// stays small.
func (g *rootRig) flood(t *testing.T) {
	box, err := g.c.Guest(t.Context(), "box")
	if err != nil {
		t.Fatal(err)
	}
	rss, fds, logged := keeperUse(t, g, int(box.KeeperPid))
	done := make(chan string, 1)
	go func() { done <- sh(t, g.c, "box", "root", rootGuest+" free flood share0 /s/plain/flood-on").out }()
	eventually(t, "the flood is on", func() bool { _, err := os.Stat(filepath.Join(g.f.plain, "flood-on")); return err == nil })
	for what, f := range map[string]func() error{
		"a task": func() error { return alive(sh(t, g.c, "box", "", "echo alive").out, "alive\n") },
		"another share": func() error {
			return alive(sh(t, g.c, "box", "", "cat /s/ro/file; echo x >/s/rw/under-flood").out, "contents\n")
		},
	} {
		begin := time.Now()
		if err := f(); err != nil {
			t.Errorf("%s under a flood: %v after %v", what, err, time.Since(begin))
		}
		t.Logf("%s under a flood: %v", what, time.Since(begin))
	}
	sh(t, g.c, "box", "", "echo new >/s/review/under-flood")
	if _, err := os.Stat(filepath.Join(g.f.rw, "under-flood")); err != nil {
		t.Error(err)
	}
	nowRSS, nowFDs, nowLogged := keeperUse(t, g, int(box.KeeperPid))
	out := <-done
	t.Logf("%s; the keeper: %d -> %d KiB, %d -> %d descriptors, %d -> %d bytes of log", strings.TrimSpace(out), rss, nowRSS, fds, nowFDs, logged, nowLogged)
	if number(t, out, "open")+number(t, out, "refused") != 600 || number(t, out, "ended") < 100 {
		t.Errorf("control: %s", out)
	}
	if nowRSS > rss+(64<<10) || nowFDs > fds+600 || nowLogged > logged+(64<<10) {
		t.Error("the keeper grows with what its guest opens")
	}
	eventually(t, "what the flood has taken is given back", func() bool { _, now, _ := keeperUse(t, g, int(box.KeeperPid)); return now < fds+20 })
	g.rawFolder(t, "afterwards")
	if r := sh(t, g.c, "box", "", "cat /s/afterwards/file"); r.out != "contents\n" {
		t.Errorf("%q", r.out)
	}
}

func alive(out, want string) error {
	if out != want {
		return fmt.Errorf("%q", out)
	}
	return nil
}

// keeperUse is a process's memory in KiB and its descriptors, and how long the
// keeper's log is.
func keeperUse(t *testing.T, g *rootRig, pid int) (rss, fds int, logged int64) {
	t.Helper()
	for _, l := range strings.Split(read(t, fmt.Sprintf("/proc/%d/status", pid)), "\n") {
		fmt.Sscanf(l, "VmRSS: %d kB", &rss)
	}
	es, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(g.w.home, "state/guests/box/keeper.log")); err == nil {
		logged = fi.Size()
	}
	return rss, len(es), logged
}
