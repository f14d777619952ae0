package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/review"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// What a guest's root does to its shares, by the program in testdata/rootguest.
// The verdict is what the host's folders hold afterwards.

const rootGuest = "/home/rootguest" // in the guest

// rootRig is a guest with that program in it.
type rootRig struct {
	w *world
	c *client.Client
	f sharedFolders
	k apiconnect.KeeperServiceClient
}

func newRootRig(t *testing.T, boundary, image string) *rootRig {
	t.Helper()
	g := &rootRig{}
	g.w, g.c, g.f = newShared(t, boundary, image)
	g.k = apiconnect.NewKeeperServiceClient(unixClient(guest.SocketPath(filepath.Join(g.w.home, "run"), "box")), "http://keeper")
	carry(t, g.c, rootGuest, "go", "build", "-trimpath", "-ldflags=-s -w", "./testdata/rootguest")
	write(t, filepath.Join(g.w.work, "outside-canary"), "untouched")
	if err := os.Mkdir(filepath.Join(g.w.work, "outside"), 0o777); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(g.w.work, "outside/canary"), "untouched")
	return g
}

// carry builds a static program, puts it into a guest and says where it is on the host.
func carry(t *testing.T, c *client.Client, to string, build ...string) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "program")
	n := len(build) - 1
	cmd := exec.Command(build[0], append(build[1:n:n], "-o", bin, build[n])...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	p, err := c.StartTask(t.Context(), client.Task{Guest: "box", User: "root", Stdin: bytes.NewReader(b), Stdout: &said, Stderr: &said,
		Args: []string{"/bin/sh", "-c", "cat >" + to + " && chmod 755 " + to}})
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	return bin
}

// root runs the program as the guest's root.
func (g *rootRig) root(t *testing.T, args ...string) string {
	t.Helper()
	return sh(t, g.c, "box", "root", rootGuest+" "+strings.Join(args, " ")).out
}

// canaries fails if anything beside the shares was touched.
func (g *rootRig) canaries(t *testing.T) {
	t.Helper()
	if es, _ := os.ReadDir(filepath.Join(g.w.work, "outside")); len(es) != 1 {
		t.Errorf("beside the shares there are %v", es)
	}
	for _, n := range []string{"outside/canary", "outside-canary"} {
		if got := read(t, filepath.Join(g.w.work, n)); got != "untouched" {
			t.Errorf("%s says %q", n, got)
		}
	}
	if es, _ := filepath.Glob(filepath.Join(g.w.work, "*stolen*")); len(es) != 0 {
		t.Errorf("beside the shares there are %q", es)
	}
}

// number is what the program said of a word.
func number(t *testing.T, out, word string) int {
	t.Helper()
	m := regexp.MustCompile(`(?m)\b` + word + ` (\d+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no %s in %q", word, out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// TestRootGuestVM is all of it in a machine, TestRootGuestProcess what a wall of
// processes has as well.
func TestRootGuestVM(t *testing.T) {
	g := newRootRig(t, wallVM, "")
	t.Run("Names", g.names)
	t.Run("Review", g.review)
	t.Run("SwapRace", g.race)
	t.Run("HostDiskFull", g.diskFull)
	t.Run("Held", g.held)
	t.Run("Remount", g.remount)
	t.Run("RawReadOnly", g.rawReadOnly)
	t.Run("Raw", g.raw)
	t.Run("Flood", g.flood)
}

func TestRootGuestProcess(t *testing.T) {
	g := newRootRig(t, wallProcess, hostImage)
	t.Run("Names", g.names)
	t.Run("Review", g.review)
	t.Run("SwapRace", g.race)
	t.Run("HostDiskFull", g.diskFull)
	t.Run("Held", g.held)
}

// plainly is a judge of names of its own: letters alone, without what comes after
// a colon.
var listedPlainly = regexp.MustCompile(`(^|/)([a-z]*git/(hooks|config|commondir)|git/(modules|worktrees)/.*/(hooks|config|configworktree)|v?s?code|vscode|idea|devcontainer|claude|cursor|codex|husky|envrc|mcpjson|npmrc|gdbinit|desktopini|alnk|env|envlocal|idrsa|ssh|aws|serverkey)(/|$)`)

func plainly(path string) string {
	parts := strings.Split(strings.ToLower(path), "/")
	for i, p := range parts {
		p, _, _ = strings.Cut(p, ":")
		parts[i] = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, p)
	}
	return strings.Join(parts, "/")
}

// S10, H01, H02, H05: names of the lists are made, renamed, linked, exchanged,
// replaced from above, in every alias. Nothing of it is on the host.
func (g *rootRig) names(t *testing.T) {
	set, err := rules.Compile(rules.Options{Mode: rules.ReadWrite})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(g.f.rw, ".git/config"), "[core]\n")
	write(t, filepath.Join(g.f.rw, ".envrc"), "export A=1\n")
	want := map[string]string{}
	for _, n := range []string{".env", ".envrc", ".git/config", ".git/hooks/pre-commit"} {
		want[n] = read(t, filepath.Join(g.f.rw, n))
	}
	out := g.root(t, "names /s/rw")
	t.Logf("%s", out[max(0, len(out)-200):])
	if n := number(t, out, "tries"); n < 500 || strings.Contains(out, "SECRET") {
		t.Errorf("%d tries: %s", n, out)
	}
	seen := 0
	err = filepath.WalkDir(g.f.rw, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(g.f.rw, path)
		v := set.Judge(rel)
		switch _, was := want[rel]; {
		case err != nil:
			return err
		case was:
			if got := read(t, path); got != want[rel] {
				t.Errorf("%s says %q", rel, got)
			}
			seen++
		case rel == ".git/hooks":
		case v.Hidden || v.Protected || listedPlainly.MatchString(plainly(rel)):
			t.Errorf("%q is on the host", rel)
		case v.Ancestor && !d.IsDir():
			t.Errorf("%q is on the host and no folder", rel)
		}
		return nil
	})
	if err != nil || seen != len(want) {
		t.Errorf("%d of %d are there: %v", seen, len(want), err)
	}
	for _, n := range []string{"harmless", "tree0.away"} { // made, renamed and replaced in the same ways
		if m, _ := filepath.Glob(filepath.Join(g.f.rw, n)); len(m) != 1 {
			t.Errorf("control: %s is not there", n)
		}
	}
	// The control of the judge: on a plain share the same names come to be.
	plain := filepath.Join(g.f.plain, "below")
	if err := os.Mkdir(plain, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(plain, 0o777)
	out = sh(t, g.c, "box", "", rootGuest+" names /s/plain/below").out // whose root may have no user of the host
	reached := 0
	filepath.WalkDir(plain, func(path string, _ os.DirEntry, _ error) error {
		if rel, _ := filepath.Rel(plain, path); listedPlainly.MatchString(plainly(rel)) {
			reached++
		}
		return nil
	})
	if reached < 8 {
		t.Errorf("control: %d of the names came to be on a plain share: %s", reached, out)
	}
	g.canaries(t)
}

// S12: whatever is done in a review, the host's folder is what it was, and the
// change set is what was done.
func (g *rootRig) review(t *testing.T) {
	dir := g.f.review
	for _, n := range []string{"written", "deleted", "renamed", "cut", "mode", "folder/a", "folder/b"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, n)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, n), "of the host: "+n)
	}
	for _, n := range []string{"mapped", "punched"} {
		write(t, filepath.Join(dir, n), strings.Repeat("host", 2048))
	}
	if _, err := g.k.RefreshShare(t.Context(), connect.NewRequest(&api.RefreshShareRequest{})); err != nil {
		t.Fatal(err)
	}
	before, stamp := look(t, dir), stamps(t, dir)
	if out := g.root(t, "review /s/review"); out != "" {
		t.Fatalf("control: %s", out)
	}
	if r := sh(t, g.c, "box", "root", "cd /s/review; cat written; head -c 4 mapped; stat -c %a mode; ls -d folder deleted renamed newname 2>/dev/null"); r.out != "EVILEVIL700\nnewname\n" {
		t.Errorf("control: the guest has %q", r.out)
	}
	if after := look(t, dir); after != before {
		t.Errorf("the host's folder was\n%sand is\n%s", before, after)
	}
	if now := stamps(t, dir); now != stamp {
		t.Errorf("inodes and times were\n%sand are\n%s", stamp, now)
	}
	got := map[string]string{}
	dirs, _ := filepath.Glob(filepath.Join(g.w.home, "state/guests/box/review/*"))
	for _, d := range dirs {
		s, err := review.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range s.Entries() {
			got[e.Name] = fmt.Sprint(e.Kind)
		}
		s.Close()
	}
	file, gone := fmt.Sprint(review.File), fmt.Sprint(review.Removed)
	for name, kind := range map[string]string{
		"written": file, "deleted": gone, "renamed": gone, "newname": file, "cut": file, "mode": file, "folder": gone, "folder/a": gone, "folder/b": gone, "mapped": file, "punched": file,
	} {
		if got[name] != kind {
			t.Errorf("%s is %q in the change set, not %s", name, got[name], kind)
		}
		delete(got, name)
	}
	if len(got) != 0 {
		t.Errorf("the change set has %v as well", got)
	}
}

// stamps are the inodes, times and modes of a folder's entries.
func stamps(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			st := fi.Sys().(*syscall.Stat_t)
			fmt.Fprintln(&b, path, st.Ino, st.Mtim, st.Ctim, st.Mode, st.Nlink, st.Blocks)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// raced judges a race by what the program said and the host's canaries.
func (g *rootRig) raced(t *testing.T, what, out string) {
	t.Helper()
	t.Logf("%s: %s", what, out)
	if n, least := number(t, out, "tries"), scaled(100, 1000); n < least {
		t.Errorf("%s: %d tries, of %d at least", what, n, least)
	}
	if number(t, out, "swaps") == 0 || number(t, out, "created") == 0 {
		t.Errorf("%s: the race was not run: %s", what, out)
	}
	g.canaries(t)
}

// S06 through the guest's own kernel.
func (g *rootRig) race(t *testing.T) {
	g.raced(t, "through the kernel", g.root(t, "race /s/rw", strconv.Itoa(scaled(3, 60))))
}

// diskFull: a host's folder without room is ENOSPC in the guest, and works again
// when there is some.
func (g *rootRig) diskFull(t *testing.T) {
	dir := filepath.Join(g.w.work, "small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// More than what a share always leaves free, which the host would run into first.
	if err := syscall.Mount("small", dir, "tmpfs", 0, "size=272m"); err != nil {
		t.Skipf("a file system of the host's with an end: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := live(t, g.w, g.k, "small", dir); err != nil {
		t.Fatal(err)
	}
	out := g.root(t, "fill /s/small")
	t.Logf("%s", out)
	if !strings.Contains(out, "no room: true") || read(t, filepath.Join(dir, "after")) != "room again" {
		t.Errorf("%s", out)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil || st.Bavail == 0 {
		t.Errorf("%d blocks are left, %v", st.Bavail, err)
	}
	if _, err := g.k.DetachShare(t.Context(), connect.NewRequest(&api.DetachShareRequest{Tag: "small"})); err != nil {
		t.Error(err)
	}
}

// held: what a task has open and mapped of a share leads nowhere once it is gone.
func (g *rootRig) held(t *testing.T) {
	dir := filepath.Join(g.w.work, "held")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "file"), strings.Repeat("host", 1024))
	if err := live(t, g.w, g.k, "held", dir); err != nil {
		t.Fatal(err)
	}
	in, feed := io.Pipe()
	r, w := io.Pipe()
	p, err := g.c.StartTask(t.Context(), client.Task{Guest: "box", User: "root", Stdin: in, Stdout: w, Stderr: w, Args: []string{rootGuest, "hold", "/s/held/file"}})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(r)
	for {
		s, err := lines.ReadString('\n')
		if err != nil || strings.HasPrefix(s, "failed") {
			t.Fatalf("%q %v", s, err)
		}
		if s == "up\n" {
			break
		}
	}
	timed(t, "detach", func() error {
		_, err := g.k.DetachShare(t.Context(), connect.NewRequest(&api.DetachShareRequest{Tag: "held"}))
		return err
	})
	before := look(t, dir)
	if !strings.Contains(before, "hosthost") {
		t.Fatalf("%s", before)
	}
	go io.WriteString(feed, "go\n")
	var rest strings.Builder
	for !strings.HasSuffix(rest.String(), "done\n") {
		s, err := lines.ReadString('\n')
		rest.WriteString(s)
		if err != nil {
			break // a page that is nowhere ends a process by SIGBUS, too
		}
	}
	go io.Copy(io.Discard, r)
	p.Wait()
	t.Logf("%s", rest.String())
	if strings.Contains(rest.String(), "write: <nil>") || look(t, dir) != before {
		t.Errorf("%s", rest.String())
	}
	if n := shareProcessesOf(g.w, dir); n != 0 {
		t.Errorf("%d processes have it open", n)
	}
}

// shareProcessesOf counts processes of ours that hold a folder.
func shareProcessesOf(w *world, dir string) (n int) {
	for _, pid := range w.processes() {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%s/fd/*", strings.Fields(pid)[0]))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); to == dir || strings.HasPrefix(to, dir+"/") {
				n++
				break
			}
		}
	}
	return n
}
