package agent

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// TestReviewRandom: TestReview with whatever comes.
func TestReviewRandom(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	s := newSharing(t)
	dir := s.folder("share0", rules.Review)
	sources(t, dir)
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w", ReadOnly: true, Overlay: true, Layer: "x"})
	for round := range 8 {
		var b strings.Builder
		b.WriteString("cd /run/w\n")
		for range 60 {
			a, c := some(rnd), some(rnd)
			ops := []string{
				"echo %[3]d >%[1]s", "echo %[3]d >>%[1]s", "rm -rf %[1]s", "mkdir -p %[1]s", "mv %[1]s %[2]s", "cp -r --remove-destination %[1]s %[2]s", "ln -s %[2]s %[1]s", "ln %[1]s %[2]s",
				"chmod 7%[4]d%[4]d %[1]s", "rm -rf %[1]s; mkdir %[1]s; echo %[3]d >%[1]s/in", "mkfifo %[1]s", "rm -f %[1]s", "rmdir %[1]s", "truncate -s %[3]d %[1]s",
			}
			// Nobody opens a pipe that has no other end.
			fmt.Fprintf(&b, "test -p %[1]s || test -p %[2]s || { "+ops[rnd.IntN(len(ops))]+"; } 2>/dev/null\n", a, c, rnd.IntN(1000), rnd.IntN(8))
		}
		b.WriteString("true")
		h.good("set +e; " + b.String())
		sees := look(t, "/run/w")
		r, e := h.review("/run/w")
		if e != "" {
			t.Fatal(e)
		}
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			// It holds pipes from an earlier round.
			t.Fatal(err)
		}
		same(t, dir, copied)
		r.apply(copied)
		if got := look(t, copied); got != sees {
			t.Fatalf("round %d of seed %d: the list makes\n%s\nthe guest sees\n%s\n%v\n%s", round, seed, got, sees, r.kinds(), b.String())
		}
		names := r.names()
		if round%2 == 1 {
			if e := r.drop(names...); e != "" {
				t.Fatal(e)
			}
			if got, want := look(t, "/run/w"), look(t, dir); got != want {
				t.Fatalf("round %d of seed %d: all forgotten, the guest sees\n%s\nnot\n%s", round, seed, got, want)
			}
		}
		_ = r.conn.Close()
	}
}

// same gives a copy the modes of the original.
func same(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.Walk(from, func(p string, fi os.FileInfo, err error) error {
		if err != nil || fi.Mode()&os.ModeSymlink != 0 {
			return err
		}
		return os.Chmod(to+strings.TrimPrefix(p, from), fi.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// some is a name that there may be.
func some(rnd *rand.Rand) string {
	parts := []string{"edit", "src", "again", "moved", "b", "deep", "x", "new", "link", "away"}
	n := []string{parts[rnd.IntN(len(parts))]}
	for rnd.IntN(2) == 0 && len(n) < 4 {
		n = append(n, parts[rnd.IntN(len(parts))])
	}
	return strings.Join(slices.Clip(n), "/")
}
