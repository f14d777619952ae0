package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/review"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// live gives a running guest a share, as the daemon does.
func live(t *testing.T, w *world, k apiconnect.KeeperServiceClient, tag, path string) error {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	f, err := guest.StartShare(t.Context(), guest.ShareSpec{
		Tag: tag, Path: path, Dev: st.Dev, Ino: st.Ino, Owner: taskUser, Store: filepath.Join(w.home, "store-"+tag), Rules: rules.Options{Mode: rules.ReadWrite},
	}, guest.ShareStart{Command: []string{filepath.Join(w.bin, "carreld"), "share"}, Outlive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := guest.HandShare(filepath.Join(w.home, "run"), "box", tag, f); err != nil {
		t.Fatal(err)
	}
	_, err = k.AttachShare(t.Context(), connect.NewRequest(&api.AttachShareRequest{
		Tag: tag, Share: &api.Share{Path: path, GuestPath: "/s/" + tag, Mode: api.ShareMode_SHARE_MODE_RW},
	}))
	return err
}

// timed logs how long a share takes to come and go. What that may be is measured
// where nothing else runs.
func timed(t *testing.T, what string, f func() error) {
	t.Helper()
	begin := time.Now()
	if err := f(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: %v", what, time.Since(begin))
}

// testLive: a folder comes while the guest runs, and goes; once it has gone,
// what a task has open of it leads nowhere.
func testLive(t *testing.T, w *world, c *client.Client) {
	k := apiconnect.NewKeeperServiceClient(unixClient(guest.SocketPath(filepath.Join(w.home, "run"), "box")), "http://keeper")
	dir := filepath.Join(w.work, "live")
	fill(t, dir)
	if r := sh(t, c, "box", "", "ls /s/live 2>/dev/null"); r.out != "" {
		t.Fatalf("it is there before: %q", r.out)
	}
	timed(t, "attach", func() error { return live(t, w, k, "live", dir) })
	if r := sh(t, c, "box", "", "cd /s/live && cat file && echo a >made && cat .env"); !strings.HasPrefix(r.out, "contents\n") || strings.Contains(r.out, "SECRET") {
		t.Errorf("%q", r.out)
	}
	if got := read(t, filepath.Join(dir, "made")); got != "a\n" {
		t.Errorf("control: the host has %q", got)
	}
	if err := live(t, w, k, "live", dir); err == nil {
		t.Error("a second share at the same place")
	}

	in, feed := io.Pipe()
	r, out := io.Pipe()
	p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Stdin: in, Stdout: out, Stderr: out,
		Args: []string{"/bin/sh", "-c", "exec 3</s/live/file 4>>/s/live/held; cd /s/live; echo up; read x; cat <&3; echo late >&4; echo late >later; ls; echo done"}})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(r)
	if s, err := lines.ReadString('\n'); s != "up\n" {
		t.Fatalf("%q, %v", s, err)
	}
	timed(t, "detach", func() error {
		_, err := k.DetachShare(t.Context(), connect.NewRequest(&api.DetachShareRequest{Tag: "live"}))
		return err
	})
	before := look(t, dir)
	if !strings.Contains(before, "/held") {
		t.Errorf("control: the task had opened nothing: %s", before)
	}
	go io.WriteString(feed, "go\n")
	var rest bytes.Buffer
	for !strings.HasSuffix(rest.String(), "done\n") {
		s, err := lines.ReadString('\n')
		rest.WriteString(s)
		if err != nil {
			t.Fatalf("%q, %v", rest.String(), err)
		}
	}
	go io.Copy(io.Discard, r)
	p.Wait()
	if strings.Contains(rest.String(), "contents") || strings.Contains(rest.String(), "made") {
		t.Errorf("after the share was taken away: %q", rest.String())
	}
	if after := look(t, dir); after != before {
		t.Errorf("the host's folder was\n%sand is\n%s", before, after)
	}
	if r := sh(t, c, "box", "root", "ls /s/live; cat /s/live/file"); strings.Contains(r.out, "made") || strings.Contains(r.out, "contents") {
		t.Errorf("%q", r.out)
	}
	if n := shareProcesses(w); n != 0 {
		t.Errorf("%d processes serve it still", n)
	}
	timed(t, "attach again", func() error { return live(t, w, k, "live", dir) })
	if r := sh(t, c, "box", "", "cat /s/live/made"); r.out != "a\n" {
		t.Errorf("%q", r.out)
	}
	// One that its guest starts with goes the same way.
	timed(t, "detach the first", func() error {
		_, err := k.DetachShare(t.Context(), connect.NewRequest(&api.DetachShareRequest{Tag: "/s/ro"}))
		return err
	})
	if r := sh(t, c, "box", "root", "cat /s/ro/file; echo alive"); strings.Contains(r.out, "contents") || !strings.Contains(r.out, "alive") {
		t.Errorf("%q", r.out)
	}
	if _, err := k.DetachShare(t.Context(), connect.NewRequest(&api.DetachShareRequest{Tag: "none"})); err == nil {
		t.Error("a share that is none was taken away")
	}
}

// shareProcesses counts those that were started beside a keeper.
func shareProcesses(w *world) (n int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		exe, _ := os.Readlink(d + "/exe")
		cmd, _ := os.ReadFile(d + "/cmdline")
		stat, _ := os.ReadFile(d + "/stat")
		f := strings.Fields(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]))
		if strings.HasPrefix(exe, w.bin+"/") && strings.HasSuffix(string(cmd), "\x00share\x00") && len(f) > 4 && f[1] != "Z" && f[4] == filepath.Base(d) {
			n++ // it leads a session of its own
		}
	}
	return n
}

// testImported: when a task's end is told, what it changed in a review is kept.
func testImported(t *testing.T, w *world, c *client.Client) {
	sh(t, c, "box", "", "cd /s/review; rm -f file; echo new >other; mkdir -p sub; echo y >sub/deep")
	dirs, err := filepath.Glob(filepath.Join(w.home, "state/guests/box/review/*"))
	if err != nil || len(dirs) < 4 {
		t.Fatalf("%q, %v", dirs, err)
	}
	seen := map[string]review.Kind{}
	for _, d := range dirs {
		s, err := review.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range s.Entries() {
			seen[e.Name] = e.Kind
			if e.Kind == review.File && e.Blob == "" && e.Name == "other" {
				t.Errorf("%s has no content", e.Name)
			}
		}
		s.Close()
	}
	if sets, _ := filepath.Glob(filepath.Join(w.home, "state/guests/box/review/*/undo/*")); len(sets) == 0 {
		t.Error("of what a task changed in a live share nothing is kept")
	}
	if seen["other"] != review.File || seen["file"] != review.Removed || seen["sub/deep"] != review.File {
		t.Errorf("%v", seen)
	}
}

// TestSharedVM is the same with a machine: shares by virtio-fs, and one more by
// streams.
func TestSharedVM(t *testing.T) {
	w, c, f := newShared(t, wallVM, "")
	g, err := c.Guest(t.Context(), "box")
	if err != nil || len(g.Shares) != 6 || g.Shares[4].Carrier != "virtio-fs" || g.Shares[5].Carrier != "fuse" {
		t.Fatalf("%v, %v", g.GetShares(), err)
	}
	if r := sh(t, c, "box", "", "cd /s/sixth; cat file; cat .env; echo x >made"); !strings.HasPrefix(r.out, "contents\n") || strings.Contains(r.out, "SECRET") || r.status == 0 {
		t.Errorf("by a stream: %q, %d", r.out, r.status)
	}
	t.Run("Names", func(t *testing.T) { testSharedNames(t, c, f) })
	t.Run("Imported", func(t *testing.T) { testImported(t, w, c) })
	t.Run("Live", func(t *testing.T) { testLive(t, w, c) })
	t.Run("Posix", func(t *testing.T) { testPosix(t, w, c, f) })
}
