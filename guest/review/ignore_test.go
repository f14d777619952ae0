package review

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// git runs git for a test, on a repository that the test has made. The product
// never does.
func git(t *testing.T, dir, in string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git to compare with")
	}
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(in)
	cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.com", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.com")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && stderr.Len() > 0 {
		t.Fatalf("git %q: %v: %s", args, err, &stderr)
	}
	return string(out)
}

// gitIgnores asks git which of the names it ignores, tracked or not.
func gitIgnores(t *testing.T, dir string, names []string) (out []string) {
	t.Helper()
	var in strings.Builder
	for _, n := range names { // without its slash, git looks for itself whether it is a folder
		in.WriteString(strings.TrimSuffix(n, "/") + "\x00")
	}
	text := git(t, dir, in.String(), "check-ignore", "--no-index", "--stdin", "-z")
	return strings.FieldsFunc(text, func(r rune) bool { return r == 0 })
}

func openRoot(t *testing.T, dir string) *share.Root {
	t.Helper()
	root, err := share.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// weIgnore asks the ignorer the same; a name that ends in a slash is a folder.
func weIgnore(t *testing.T, dir string, names []string) (out []string) {
	t.Helper()
	g := newIgnorer(openRoot(t, dir))
	for _, n := range names {
		name, isDir := strings.CutSuffix(n, "/")
		if g.ignored(name, isDir, nil) {
			out = append(out, n)
		}
	}
	return out
}

var ignorePatterns = []string{
	"*", "!*/", "!*.go", "a", "a/", "/a", "a/b", "/a/b/", "**/a", "a/**", "a/**/b", "**/a/**", "!a", "!a/", "!a/b", "!/b", "*.txt", "!docs", "docs/*",
	"!docs/b.txt", "?", "a?", "[ab]", "[!a]", "[^a]", "[a-c]x", "[]]", "[]-a]", "[[:alpha:]]", "[[:digit:][:punct:]]", "[[:nope:]]", "[a", "\\a", "\\#x",
	"#x", "\\!x", "!", "/", "//", "a//b", "a\\", "a\\ ", "a ", "b  ", " b", "*a*", "a*b*c", "**", "***", "a**", "a**b", "**b/c", "/**", "/*", "/*/b", "*/a",
	"a/*/b", "é", "[é]", "a.txt\r", "\xef\xbb\xbfa", "[a-]", "[--a]", "[\\]]", "[a\\-c]", "*.", ".*", "b/c/", "!b/c/d", "a/./b", "../a", "[!]a]", "[[:upper:]-z]",
}

var ignoreParts = []string{"a", "b", "c", "docs", "a.txt", "b.txt", "x.go", "#x", "!x", "ab", "ax", "abc", "aXbYc", "]", "-", "1", "A", "é", ".h", "a ", "\\", "[a"}

// TestIgnoreLikeGit compares with git: each pattern by itself, then random lists
// at several levels.
func TestIgnoreLikeGit(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "", "init", "-q")
	rnd := rand.New(rand.NewPCG(1, 2))
	names := []string{"a/b/", "docs/"}
	for _, n := range names {
		os.MkdirAll(filepath.Join(dir, n), 0o755)
	}
	for len(names) < 250 {
		var parts []string
		for range 1 + rnd.IntN(4) {
			parts = append(parts, ignoreParts[rnd.IntN(len(ignoreParts))])
		}
		n := strings.Join(parts, "/")
		p := filepath.Join(dir, n)
		if _, err := os.Lstat(p); err == nil || os.MkdirAll(filepath.Dir(p), 0o755) != nil {
			continue // it is another kind already
		}
		if rnd.IntN(2) == 0 {
			n += "/"
			os.Mkdir(p, 0o755)
		} else {
			os.WriteFile(p, nil, 0o644)
		}
		names = append(names, n)
	}
	levels := []string{".gitignore", "a/.gitignore", "a/b/.gitignore", "docs/.gitignore", ".git/info/exclude"}
	for _, p := range ignorePatterns {
		compareIgnore(t, dir, names, map[string]string{".gitignore": p + "\n"})
	}
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		files := map[string]string{}
		for _, at := range levels {
			var lines []string
			for range rnd.IntN(5) {
				lines = append(lines, ignorePatterns[rnd.IntN(len(ignorePatterns))])
			}
			files[at] = strings.Join(lines, "\n")
		}
		compareIgnore(t, dir, names, files)
	}
}

func compareIgnore(t *testing.T, dir string, names []string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, got := map[string]bool{}, map[string]bool{}
	for _, n := range gitIgnores(t, dir, names) {
		want[n] = true
	}
	for _, n := range weIgnore(t, dir, names) {
		got[strings.TrimSuffix(n, "/")] = true
	}
	for _, n := range names {
		if n := strings.TrimSuffix(n, "/"); got[n] != want[n] {
			t.Errorf("%q with %q: ignored is %v, git says %v", n, files, got[n], want[n])
			return
		}
	}
}

func TestIgnoreTracked(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "", "init", "-q")
	for name, content := range map[string]string{".gitignore": "*.log\nout/\n", "a.log": "", "b.log": "", "out/kept": "", "out/new": "", "sub/.git": "gitdir: ../../elsewhere\n", "sub/c.log": ""} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, []byte(content), 0o644)
	}
	names := []string{"a.log", "b.log", "out/", "out/kept", "out/new", "sub/c.log"}
	git(t, dir, "", "add", "-f", "a.log", "out/kept")
	if got := weIgnore(t, dir, names); !slices.Equal(got, []string{"b.log", "out/new"}) {
		t.Errorf("ignored %q", got)
	}
	// Where the list of tracked files cannot be read, what the host has counts.
	root := openRoot(t, dir)
	index := filepath.Join(dir, ".git/index")
	b, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	os.WriteFile(index, b, 0o644)
	g := newIgnorer(root)
	for name, want := range map[string]bool{"b.log": false, "new.log": true, "out/x": true} {
		host, err := lstat(root, name)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.ignored(name, false, host); got != want {
			t.Errorf("with a broken index %q: %v", name, got)
		}
	}
	// No link is followed to rules.
	os.Remove(filepath.Join(dir, ".gitignore"))
	os.WriteFile(filepath.Join(dir, "elsewhere"), []byte("*\n"), 0o644)
	if err := os.Symlink("elsewhere", filepath.Join(dir, ".gitignore")); err != nil {
		t.Skip(err)
	}
	if newIgnorer(root).ignored("new.log", false, nil) {
		t.Error("a link was followed to rules")
	}
}

func TestGitIndex(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		for _, version := range []string{"2", "3", "4"} {
			dir := t.TempDir()
			git(t, dir, "", "init", "-q", "--object-format="+format)
			for _, n := range []string{"a", "a.b", "dir/one", "dir/two", "dir/sub/three", "é\n", strings.Repeat("n", 200)} {
				p := filepath.Join(dir, n)
				os.MkdirAll(filepath.Dir(p), 0o755)
				os.WriteFile(p, []byte(n), 0o644)
			}
			git(t, dir, "", "add", ".")
			os.WriteFile(filepath.Join(dir, "later"), nil, 0o644)
			git(t, dir, "", "add", "-N", "later") // an extended entry
			git(t, dir, "", "update-index", "--index-version", version)
			b, err := os.ReadFile(filepath.Join(dir, ".git/index"))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			if err := parseGitIndex(b, func(n string) { got = append(got, n) }); err != nil {
				t.Errorf("%s, version %s: %v", format, version, err)
			}
			want := strings.FieldsFunc(git(t, dir, "", "ls-files", "-z"), func(r rune) bool { return r == 0 })
			if !slices.Equal(got, want) {
				t.Errorf("%s, version %s: %q, git says %q", format, version, got, want)
			}
			for i := range b { // no cut is read as if it were whole
				if parseGitIndex(b[:i], func(string) {}) == nil {
					t.Fatalf("%s, version %s: cut at %d it is read", format, version, i)
				}
			}
			git(t, dir, "", "update-index", "--split-index")
			if b, err = os.ReadFile(filepath.Join(dir, ".git/index")); err != nil {
				t.Fatal(err)
			}
			if parseGitIndex(b, func(string) {}) == nil {
				t.Errorf("%s, version %s: a split index was read as if it were whole", format, version)
			}
		}
	}
}

func FuzzGitIndex(f *testing.F) {
	f.Add([]byte("DIRC\x00\x00\x00\x02\x00\x00\x00\x00" + strings.Repeat("\x00", 20)))
	entry := strings.Repeat("\x00", 62)
	f.Add([]byte("DIRC\x00\x00\x00\x04\x00\x00\x00\x02" + entry + "\x00a/b\x00" + entry + "\x01c\x00" + strings.Repeat("\x00", 20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseGitIndex(b, func(name string) {
			if name == "" {
				t.Error("an empty name")
			}
		})
	})
}

func FuzzIgnore(f *testing.F) {
	f.Add("a/**/b\n!x", "a/c/b")
	f.Add("[[:alpha:]-]*", "x")
	f.Fuzz(func(t *testing.T, list, name string) {
		if goodName(name) != nil {
			return
		}
		asked(parseIgnore([]byte(list)), strings.Split(name, "/"), false)
	})
}

// TestIgnoreTime: a list that is made to be slow is not.
func TestIgnoreTime(t *testing.T) {
	p := strings.Repeat("*a", 120) + "b"
	deep := strings.TrimSuffix(strings.Repeat("**/*a*a*a/", 60), "/") + "/b"
	list := parseIgnore([]byte(strings.Repeat(p+"\n"+deep+"\n", 50)))
	parts := slices.Repeat([]string{strings.Repeat("a", 255)}, 100)
	began := time.Now()
	asked(list, parts, true)
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("it took %v", took)
	}
}
