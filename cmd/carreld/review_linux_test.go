package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/review"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
	"golang.org/x/sys/unix"
)

// confinedReview tells a copy of this test which folder and which store, below
// it, are left to it; asReview, that it is a review process.
const (
	confinedReview = "CARREL_TEST_CONFINED_REVIEW"
	asReview       = "CARREL_TEST_AS_REVIEW"
)

func init() {
	if os.Getenv(asReview) != "" {
		if err := runReview(nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(confinedReview); dir != "" {
		tryConfinedReview(dir)
		os.Exit(0)
	}
}

func tryConfinedReview(dir string) {
	host, store := filepath.Join(dir, "host"), filepath.Join(dir, "store")
	write := func(path string) func() error {
		return func() error { return os.WriteFile(path, nil, 0o600) }
	}
	tries := []try{
		{"read elsewhere", func() error { _, err := os.ReadFile("/etc/passwd"); return err }},
		{"list elsewhere", func() error { _, err := os.ReadDir(dir); return err }},
		{"write elsewhere", write(filepath.Join(dir, "elsewhere"))},
		{"exec", func() error { return exec.Command("/bin/true").Run() }},
		{"tcp", func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				l.Close()
			}
			return err
		}},
		{"unix socket", func() error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"device", func() error {
			os.Remove(filepath.Join(host, "pipe"))
			return unix.Mkfifo(filepath.Join(host, "pipe"), 0o600)
		}},
		{"owner", func() error { return os.Chown(host, os.Getuid(), os.Getgid()) }},
		{"host's folder", write(filepath.Join(host, "f"))},
		{"store", write(filepath.Join(store, "f"))},
	}
	tries = append(tries, unconfined(filepath.Join(dir, "host"))...)
	run := func(when string) {
		for _, x := range tries {
			word := "works"
			if x.f() != nil {
				word = "denied"
			}
			fmt.Printf("%s %s: %s\n", when, x.name, word)
		}
	}
	run("before")
	root, err := share.OpenRoot(host)
	if err == nil {
		err = confineReview([]*share.Root{root}, os.Getenv("READ_ONLY") != "", store)
	}
	if err != nil {
		fmt.Println("confine:", err)
		os.Exit(1)
	}
	run("after")
}

// A review process can do nothing but change its folders and its stores, and
// not even the former for who only looks.
func TestConfineReview(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []string{"", "1"} {
		dir := t.TempDir()
		for _, d := range []string{"host", "store"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(self)
		cmd.Env = []string{confinedReview + "=" + dir, "READ_ONLY=" + readOnly}
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		denied := append([]string{"read elsewhere", "list elsewhere", "write elsewhere", "exec", "tcp", "unix socket", "device", "owner"}, names(unconfined(filepath.Join(dir, "host")))...)
		works := []string{"store"}
		if readOnly != "" {
			denied = append(denied, "host's folder")
		} else {
			works = append(works, "host's folder")
		}
		for _, n := range denied {
			if !strings.Contains(string(b), "before "+n+": works\n") || !strings.Contains(string(b), "after "+n+": denied\n") {
				t.Errorf("%s:\n%s", n, b)
			}
		}
		for _, n := range works {
			if !strings.Contains(string(b), "after "+n+": works\n") {
				t.Errorf("control: %s:\n%s", n, b)
			}
		}
	}
}

// reviewed is a share of which a guest has changed f, removed g and made h.
func reviewed(t *testing.T) review.ShareRef {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return reviewedIn(t, filepath.Join(dir, "host"), filepath.Join(dir, "store"))
}

func reviewedIn(t *testing.T, host, store string) review.ShareRef {
	t.Helper()
	ref := review.ShareRef{Path: host, Store: store, Rules: rules.Options{Mode: rules.Review}}
	for _, d := range []string{ref.Path, ref.Store} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	root, err := share.OpenRoot(ref.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ref.Dev, ref.Ino = root.ID()
	set, err := rules.Compile(ref.Rules)
	if err != nil {
		t.Fatal(err)
	}
	base, err := review.OpenBase(ref.Store)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	for _, n := range []string{"f", "g"} {
		if err := os.WriteFile(filepath.Join(ref.Path, n), []byte("old\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		is, err := root.Lstat(n)
		if err != nil {
			t.Fatal(err)
		}
		base.Served(n, is)
	}
	changed, err := review.Open(ref.Store)
	if err != nil {
		t.Fatal(err)
	}
	defer changed.Close()
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- changes(theirs) }()
	if _, err := changed.Import(t.Context(), ours, review.ImportOptions{Root: root, Rules: set, Base: base, Task: "T"}); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	<-done
	return ref
}

// changes plays the guest.
func changes(conn net.Conn) error {
	defer conn.Close()
	end := &wire.Reviewed{Kind: &wire.Reviewed_Done{Done: &wire.Done{}}}
	for _, c := range []*wire.Changed{
		{Name: "f", Type: wire.ChangedType_CHANGED_TYPE_REGULAR, Mode: 0o644, Size: 4, Stamp: []byte("1")},
		{Name: "g", Type: wire.ChangedType_CHANGED_TYPE_REMOVED, Stamp: []byte("1")},
		{Name: "h", Type: wire.ChangedType_CHANGED_TYPE_REGULAR, Mode: 0o755, Size: 4, Stamp: []byte("1")},
	} {
		if err := wire.Write(conn, &wire.Reviewed{Kind: &wire.Reviewed_Change{Change: c}}); err != nil {
			return err
		}
	}
	if err := wire.Write(conn, end); err != nil {
		return err
	}
	for in := wire.NewReader(conn); ; {
		m := new(wire.Reviewing)
		if err := in.Read(m); err != nil {
			return err
		}
		if m.GetWant() != nil {
			if err := wire.Write(conn, &wire.Reviewed{Kind: &wire.Reviewed_Data{Data: []byte("new\n")}}); err != nil {
				return err
			}
		}
		if err := wire.Write(conn, end); err != nil {
			return err
		}
	}
}

// ask starts a review process for one request, and gathers its answers.
func ask[M proto.Message](t *testing.T, req review.Request, next func() M) ([]M, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(self)
	cmd.Env, cmd.Stderr, cmd.Dir = []string{asReview + "=1"}, os.Stderr, "/"
	cmd.ExtraFiles = []*os.File{in, outW}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	outW.Close()
	review.WriteRequest(inW, req)
	inW.Close()
	var all []M
	r := bufio.NewReader(out)
	for {
		m := next()
		if err = review.ReadAnswer(r, m); err != nil {
			break
		}
		all = append(all, m)
	}
	if werr := cmd.Wait(); werr != nil {
		t.Error(werr)
	}
	if err == io.EOF {
		err = nil
	}
	return all, err
}

// TestReviewProcess takes one change set through all that a review process does.
func TestReviewProcess(t *testing.T) {
	ref := reviewed(t)
	shares := []review.ShareRef{ref, {Path: "/nowhere", Store: filepath.Join(ref.Store, "none")}}
	file := func(n string) string { b, _ := os.ReadFile(filepath.Join(ref.Path, n)); return string(b) }

	diff, err := ask(t, review.Request{Guest: "g", Shares: shares, Diff: &api.DiffRequest{}}, func() *api.Change { return new(api.Change) })
	if err != nil || len(diff) != 3 || diff[0].GetPath() != filepath.Join(ref.Path, "f") || !strings.Contains(diff[0].GetDiff(), "+new") {
		t.Fatalf("diff: %v, %v", diff, err)
	}
	sum, err := ask(t, review.Request{Guest: "g", Shares: shares, Summary: &api.ReviewSummaryRequest{}}, func() *api.ReviewSummary { return new(api.ReviewSummary) })
	if err != nil || len(sum) != 1 || sum[0].GetAdded() != 1 || sum[0].GetChanged() != 1 || sum[0].GetRemoved() != 1 || sum[0].GetUndoable() != 0 {
		t.Fatalf("summary: %v, %v", sum, err)
	}
	events := func() *api.ApplyEvent { return new(api.ApplyEvent) }
	dry, err := ask(t, review.Request{Guest: "g", Shares: shares, Apply: &api.ApplyRequest{DryRun: true}}, events)
	if err != nil || len(dry) != 3 || file("f") != "old\n" {
		t.Fatalf("dry run: %v, %v", dry, err)
	}
	one, err := ask(t, review.Request{Guest: "g", Shares: shares, Apply: &api.ApplyRequest{Paths: []string{filepath.Join(ref.Path, "h")}}}, events)
	if err != nil || len(one) != 1 || one[0].GetRefused() != "" || file("h") != "new\n" {
		t.Fatalf("apply of one: %v, %v", one, err)
	}
	rest, err := ask(t, review.Request{Guest: "g", Shares: shares, Apply: &api.ApplyRequest{}}, events)
	if err != nil || len(rest) != 2 || file("f") != "new\n" || file("g") != "" {
		t.Fatalf("apply: %v, %v", rest, err)
	}
	back, err := ask(t, review.Request{Guest: "g", Shares: shares, Undo: &api.UndoRequest{}}, events)
	if err != nil || len(back) != 2 || file("f") != "old\n" || file("g") != "old\n" || file("h") != "new\n" {
		t.Fatalf("undo: %v, %v", back, err)
	}
	if back, err = ask(t, review.Request{Guest: "g", Shares: shares, Undo: &api.UndoRequest{}}, events); err != nil || len(back) != 1 || file("h") != "" {
		t.Fatalf("undo of the one before: %v, %v", back, err)
	}

	_, err = ask(t, review.Request{Guest: "g", Shares: shares, Undo: &api.UndoRequest{}}, events)
	wantError(t, err, "not_found")
	_, err = ask(t, review.Request{Guest: "g", Shares: shares, Apply: &api.ApplyRequest{Paths: []string{"/etc"}}}, events)
	wantError(t, err, "bad_path")
	shares[0].Ino++
	_, err = ask(t, review.Request{Guest: "g", Shares: shares, Apply: &api.ApplyRequest{}}, events)
	wantError(t, err, "share_replaced")
}

func wantError(t *testing.T, err error, code string) {
	t.Helper()
	if own, is := err.(*review.Error); !is || own.Code != code {
		t.Errorf("%v, want %s", err, code)
	}
}
