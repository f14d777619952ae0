package review

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/share"
)

const confinedEnv = "CARREL_TEST_CONFINED"

// TestImportConfined imports in a process that may do no more than a share
// process does, and reads beneath its two folders alone.
func TestImportConfined(t *testing.T) {
	if os.Getenv(confinedEnv) != "" {
		confinedImport(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestImportConfined$", "-test.v")
	cmd.Env = append(os.Environ(), confinedEnv+"=1", "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "no landlock: ") {
		t.Skipf("%s", out)
	}
	if err != nil || !strings.Contains(string(out), "imported and shown") {
		t.Errorf("%v\n%s", err, out)
	}
}

func confinedImport(t *testing.T) {
	s := newScene(t, map[string]string{"edit": "old\n", "gone/a": "1", ".gitignore": "*.o\n", ".git/HEAD": "x"})
	canary := t.TempDir() + "/canary"
	if err := os.WriteFile(canary, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.file("edit", "new\n")
	s.entry("gone", isRemoved)
	s.entry("d", isNew)
	s.file("d/f", strings.Repeat("x", 100_000))
	s.file("d/f.o", "o")
	if err := share.Confine(s.root, true, s.store); err != nil {
		fmt.Println("no landlock: ", err)
		os.Exit(0)
	}
	// It ends here, since t.TempDir cannot be removed any more.
	if _, err := os.ReadFile(canary); err == nil {
		fmt.Println("a file elsewhere can be read")
		os.Exit(1)
	}
	counts := s.imported()
	s.wantNames("d", "d/f", "d/f.o", "edit", "gone", "gone/a")
	got := s.diff(DiffOptions{})
	if counts.Ignored != 1 || len(got) != 5 || got["edit"].GetDiff() != "@@ -1,1 +1,1 @@\n-old\n+new\n" {
		fmt.Println(counts, got)
		os.Exit(1)
	}
	if err := s.s.Drop(map[string]string{"edit": s.get("edit").Stamp}); err != nil || t.Failed() {
		fmt.Println("failed: ", err)
		os.Exit(1)
	}
	s.imported()
	fmt.Println("imported and shown")
	os.Exit(0)
}
