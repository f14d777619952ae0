package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// TestFuse: a share that the host serves over a stream works like a folder,
// both ways, and read-only means that.
func TestFuse(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	rw, ro := s.folder("share0", rules.ReadWrite), s.folder("share1", rules.ReadOnly)
	write(t, rw+"/sub/f", "from the host")
	write(t, ro+"/f", "kept")
	h := shared(t, m, s,
		&wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/rw"},
		&wire.Mount{Tag: "share1", Type: "fuse", Path: "/run/ro", ReadOnly: true})
	if got := h.good("cat /run/rw/sub/f"); got != "from the host" {
		t.Errorf("read %q", got)
	}
	// Larger than any message, and many at once.
	h.good("cd /run/rw; head -c 5000001 /dev/urandom >big; for i in 1 2 3 4; do cp big b$i & done; wait; for i in 1 2 3 4; do cmp big b$i; done; rm b?; mkdir -p a/b; mv big a/b/c; ln -s a/b/c link")
	if st, err := os.Stat(rw + "/a/b/c"); err != nil || st.Size() != 5000001 {
		t.Errorf("%v %v", st, err)
	}
	if got, err := os.Readlink(rw + "/link"); got != "a/b/c" {
		t.Errorf("%q, %v", got, err)
	}
	if got := h.good("cat /run/ro/f"); got != "kept" {
		t.Errorf("control: read %q", got)
	}
	if e := h.bad("echo x >/run/ro/new"); !strings.Contains(e, "Read-only") {
		t.Error(e)
	}
	// A killed task's request does not stay.
	w := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "cd /run/rw; cat a/b/c >/dev/null; echo up; while :; do cat a/b/c; done >/dev/null"}})
	w.until("up\n") // it has made requests, and does nothing else from here on
	w.signal(9)
	w.wait()
	h.good("cmp /run/rw/a/b/c /run/rw/link")
	h.stop()
	var st unix.Stat_t
	if unix.Stat("/run/rw/a", &st) == nil {
		t.Error("a share outlives its guest's agent")
	}
}

// TestAttach: shares come and go while the guest runs, without a trace, and
// what a task has open of one that went fails at once.
func TestAttach(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share7", rules.ReadWrite)
	write(t, dir+"/f", "here")
	write(t, dir+"/other", "there")
	h := shared(t, m, s)
	h.good("test ! -e /run/late")
	before := files(t)
	for _, overlay := range []bool{false, true, false, true} {
		mount := &wire.Mount{Tag: "share7", Type: "fuse", Path: "/run/late", Overlay: overlay, Layer: "l7"}
		if e := h.attach(mount); e != "" {
			t.Fatal(e)
		}
		// A second one there, or over the same layer, is refused.
		if e := h.attach(mount); !strings.Contains(e, "already") {
			t.Error(e)
		}
		if e := h.attach(&wire.Mount{Tag: "share8", Type: "fuse", Path: "/run/more", Overlay: true, Layer: "l7"}); overlay && !strings.Contains(e, "already") {
			t.Error(e)
		}
		task := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "cd /run/late && exec 3<f && echo up; read x; cat other; cat <&3; ls; cat /run/late/other"}, Stdin: true})
		task.until("up\n")
		begun := time.Now()
		if e := h.detach("/run/late"); e != "" {
			t.Fatal(e)
		}
		t.Logf("gone after %v", time.Since(begun))
		task.stdin("\n")
		task.closeStdin()
		task.wait()
		_ = task.conn.Close()
		if task.stdout.String() != "up\n" || strings.Count(task.stderr.String(), "not connected") < 3 {
			t.Errorf("after the end of a share (layer: %t) a task read %q, and heard %q", overlay, task.stdout.String(), task.stderr.String())
		}
		if overlay {
			continue
		}
		h.bad("test -e /run/late/f")
	}
	if e := h.detach("/run/late"); !strings.Contains(e, "no share") {
		t.Error(e)
	}
	s.group.Wait() // also every stream has ended
	noLeak(t, before)
	for _, bad := range []*wire.Mount{
		{Tag: "share7", Type: "fuse", Path: "late"}, {Tag: "no/tag", Type: "fuse", Path: "/run/late"}, {Tag: "share7", Type: "what", Path: "/run/late"},
		{Tag: "share9", Type: "fuse", Path: "/run/late"}, // nobody serves that
		{Tag: "share7", Type: "fuse", Path: "/run/late", Overlay: true, Layer: "../x"}, {Tag: "share7", Type: "fuse", Path: "/run/late", Overlay: true, Layer: strings.Repeat("x", 33)},
	} {
		if e := h.attach(bad); e == "" {
			t.Errorf("%v is attached", bad)
		}
	}
	s.group.Wait()
	noLeak(t, before)
	if b, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(b), "/run/late") || strings.Contains(string(b), lowerDir) {
		t.Errorf("mounts stay:\n%s", b)
	}
	if e := h.attach(&wire.Mount{Tag: "share7", Type: "fuse", Path: "/run/late"}); e != "" {
		t.Errorf("control: %s", e)
	}
}

// TestHostSilent: a server that says nothing holds nobody up for ever, and one
// that ends takes nobody's time.
func TestHostSilent(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	k := newShares(*m, s.dial)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := k.attach(ctx, &wire.Mount{Tag: mute, Type: "fuse", Path: "/run/mute"}); err == nil || time.Since(begun) > patience {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	dir := s.folder("share0", rules.ReadWrite)
	write(t, dir+"/f", "here")
	mount := &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/f"}
	if err := k.attach(context.Background(), mount); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/run/f/f", &st); err != nil {
		t.Fatalf("control: %v", err)
	}
	s.breakOff("share0")
	<-k.byPath["/run/f"].relay.done
	if err := unix.Stat("/run/f/g", &st); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("after the host's end: %v", err)
	}
	if err := k.detach("/run/f"); err != nil {
		t.Error(err)
	}
	if err := k.attach(context.Background(), mount); err != nil {
		t.Errorf("the same share again: %v", err)
	}
	// Unmounted by the guest's own root, the stream ends.
	r := k.byPath["/run/f"].relay
	if err := unix.Unmount("/run/f", unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(k.byPath["/run/f"].mounts[0])
	k.byPath["/run/f"].mounts = nil
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Error("the stream outlives the mount")
	}
	k.close()
	if err := k.attach(context.Background(), mount); err == nil {
		t.Error("a share comes after the end")
	}
	if err := (newShares(*m, nil)).attach(context.Background(), mount); err == nil {
		t.Error("a share comes from nowhere")
	}
}

// TestLayerKept: what the guest changed is there after a stop and after a
// crash, whatever the crash has left, and the folder is as it was.
func TestLayerKept(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	write(t, dir+"/f", "one")
	write(t, dir+"/d/g", "two")
	mount := &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true, Layer: "abc123"}
	h := shared(t, m, s, mount)
	h.good("cd /run/w; echo more >>f; rm d/g; echo new >n; mkdir e; chmod 700 d")
	h.stop()
	at := scratchDir + "/layers/abc123"
	// A copy that was cut off, deeper than the kernel cleans.
	write(t, at+"/work/work/#1/a/b/c/d/e", "left")
	write(t, at+"/next/x", "left")
	for range 2 {
		h = shared(t, m, s, mount)
		if got := h.good("cd /run/w; cat f n; ls; ls d; stat -c %a d"); got != "onemore\nnew\nd\ne\nf\nn\n700\n" {
			t.Errorf("after a stop: %q", got)
		}
		h.good("echo x >/run/w/made; rm /run/w/made")
		h.stop()
	}
	// Without a name, or without a disk, nothing is kept.
	for _, c := range []struct {
		disk, layer string
	}{{scratchDir, ""}, {"", "abc123"}} {
		other := *m
		other.disk = c.disk
		mount := &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w2", ReadOnly: true, Overlay: true, Layer: c.layer}
		for range 2 {
			h = shared(t, &other, s, mount)
			if got := h.good("cd /run/w2; ls; echo new >n2"); got != "d\nf\n" {
				t.Errorf("a layer that is not kept has %q", got)
			}
			h.stop()
		}
	}
	// A disk that is full keeps no guest from starting, and hides no change.
	if err := mnt("small", "/run/small", "tmpfs", fromHost, "size=1m,nr_inodes=16").Do(); err != nil {
		t.Fatal(err)
	}
	small := *m
	small.disk = "/run/small"
	h = shared(t, &small, s, mount)
	h.good("echo kept >/run/w/n3; for i in $(seq 100); do touch /run/w/full$i || break; done 2>/dev/null; true")
	h.stop()
	for range 3 {
		h = shared(t, &small, s, mount)
		if got := h.good("cat /run/w/n3; for i in $(seq 100); do touch /run/w/more$i || break; done 2>/dev/null; true"); got != "kept\n" {
			t.Errorf("on a full disk: %q", got)
		}
		h.stop()
	}
	h = shared(t, &small, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w2", ReadOnly: true, Overlay: true, Layer: "another"})
	h.good("echo x >/run/w2/n4")
	h.stop()
	if b, err := os.ReadFile(dir + "/f"); string(b) != "one" {
		t.Errorf("the host's file is %q, %v", b, err)
	}
	if e, _ := os.ReadDir(dir); len(e) != 2 {
		t.Errorf("the host's folder has %v", e)
	}
}

// TestRefresh: what the host changed is seen after a refresh, also by a task
// that works in the folder, and its own changes stay.
func TestRefresh(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	for _, f := range []string{"d/saved", "d/grown", "d/gone", "d/mine"} {
		write(t, dir+"/"+f, "old\n")
	}
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true})
	task := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", `cd /run/w/d; echo own >mine; cat saved grown gone; ls new branch; echo up; read x;
		cat saved grown mine; ls; ls branch/deep; echo after >made; cd /run/w; cat d/made; pwd -P`}, Stdin: true})
	task.until("up\n")
	task.stdout.Reset()
	write(t, dir+"/d/tmp", "replaced\n")
	if err := os.Rename(dir+"/d/tmp", dir+"/d/saved"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/d/grown", "longer than it was\n")
	write(t, dir+"/d/new", "new\n")
	write(t, dir+"/d/branch/deep/x", "x")
	write(t, dir+"/d/mine", "theirs\n")
	if err := os.Remove(dir + "/d/gone"); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if e := h.refresh("/run/w"); e != "" {
		t.Fatal(e)
	}
	t.Logf("refreshed in %v", time.Since(begun))
	task.stdin("\n")
	task.closeStdin()
	task.wait()
	task.wantOut("replaced\nlonger than it was\nown\nbranch\ngrown\nmine\nnew\nsaved\nx\nafter\n/run/w\n")
	if e := h.refresh("/run/none"); e == "" {
		t.Error("nothing is refreshed")
	}
}
