package review

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackedRefs: of a file that a guest has written only branches and tags
// count, with names as loose ones have, a loose one comes before it, and what
// the host has itself is not brought.
func TestPackedRefs(t *testing.T) {
	w, guest := gitWorld(t)
	git(t, w.host, "", "branch", "same")
	git(t, w.host, "", "branch", "packed-here")
	git(t, w.host, "", "pack-refs", "--all")
	git(t, w.host, "", "branch", "loose-here")
	old := strings.TrimSpace(git(t, guest, "", "rev-parse", "HEAD"))
	os.WriteFile(filepath.Join(guest, "new"), []byte("x"), 0o644)
	head := commit(t, guest, "third")
	write := func(format string, a ...any) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(guest, ".git/packed-refs"), fmt.Appendf(nil, format, a...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("# pack-refs with: peeled fully-peeled sorted \n%[1]s refs/heads/loose-here\n%[1]s refs/heads/main\n%[1]s refs/heads/packed-here\n%[2]s refs/heads/same\n%[2]s refs/stash\n%[2]s refs/tags/v1\n^%[2]s\n", old, head)
	got, err := bring(t, w, guest, false)
	want := map[string]string{"heads/main": head, "heads/same": head, "tags/v1": head}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for name, id := range want {
		if is := strings.TrimSpace(git(t, w.host, "", "rev-parse", "refs/carrel/desk/"+name)); is != id {
			t.Errorf("%s is %s, want %s", name, is, id)
		}
	}
	for name, text := range map[string]string{
		"a name that leads out": head + " refs/heads/../../../../x\n", "a control byte": head + " refs/heads/a\x1b[2J\n", "an option": head + " refs/heads/-x\n",
		"no id": "zz refs/heads/x\n", "no ref": head + " x\n", "no name": head + "\n", "peeled with a name": "^" + head + " refs/heads/x\n",
		"large": strings.Repeat("#\n", maxPackedRefs/2+1),
	} {
		write("%s", head+" refs/heads/good\n"+text)
		got, err := bring(t, w, guest, true)
		if err != nil || got[".git/refs/carrel/desk/packed-refs"] == "" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if why, told := got[".git/refs/carrel/desk/heads/good"]; name != "large" && (!told || why != "") {
			t.Errorf("%s: the good one: %q, %v", name, why, told)
		}
	}
	var all strings.Builder
	for n := range maxGitRefs + 1 {
		fmt.Fprintf(&all, "%s refs/heads/r%d\n", head, n)
	}
	write("%s", all.String())
	if got, err := bring(t, w, guest, true); err == nil {
		t.Errorf("%d refs", len(got))
	}
}
