package rules

import (
	"fmt"
	"strings"
	"testing"
)

func compile(t testing.TB, o Options) *Set {
	t.Helper()
	s, err := Compile(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lists(patterns ...string) (out []List) {
	for i, p := range patterns {
		out = append(out, List{p, fmt.Sprintf("policy.yaml:%d", i+1)})
	}
	return out
}

// word says a verdict in a word.
func word(v Verdict) string {
	switch {
	case v.Hidden:
		return "hidden"
	case v.Protected:
		return "protected"
	case v.Ancestor:
		return "ancestor"
	case v.Within:
		return "within"
	}
	return ""
}

// H01, H02 and H05: each name by itself, deeper down, with things below it, and as other file systems would find it.
func TestBuiltInNames(t *testing.T) {
	s := compile(t, Options{Mode: ReadWrite})
	names := map[string]string{}
	for _, n := range []string{
		".git/hooks", ".git/hooks/pre-commit", ".git/config", ".git/config.worktree", ".git/info/attributes", ".git/commondir",
		".git/modules/a/hooks", ".git/modules/a/b/c/config", ".git/modules/a/modules/b/hooks/x", ".git/worktrees/w/gitdir", ".git/worktrees/w/commondir",
		".git/rebase-merge", ".git/rebase-merge/git-rebase-todo", ".git/rebase-merge/strategy_opts", ".git/rebase-apply/apply-opt", ".git/sequencer", ".git/sequencer/todo",
		".git/BISECT_START", ".git/BISECT_NAMES", ".git/bisect_log", ".git/modules/a/rebase-merge/git-rebase-todo", ".git/worktrees/w/rebase-merge/git-rebase-todo",
		".git/worktrees/w/BISECT_NAMES", ".git/remotes/origin", ".git/branches/x",
		"bare.git/hooks/post-receive", "bare.git/config", ".gitconfig", ".gitmodules", ".hg/hgrc", ".husky", ".husky/pre-commit",
		".envrc", ".vscode", ".vscode/tasks.json", ".vscode/settings.json", ".vscode/launch.json", "x.code-workspace", ".idea", ".idea/workspace.xml",
		".devcontainer", ".devcontainer/devcontainer.json", ".devcontainer.json", ".claude", ".claude/settings.json", ".cursor", ".cursorrules",
		".codex", ".codex/config.toml", ".gemini", ".mcp.json", ".npmrc", ".yarnrc.yml", ".cargo/config.toml", ".gdbinit", ".lldbinit", ".vimrc",
		".exrc", ".nvim.lua", ".bashrc", ".bash_profile", ".zshrc", ".zprofile", ".profile", ".ripgreprc", "desktop.ini", "a.lnk", "a.url", "autorun.inf",
	} {
		names[n] = "protected"
	}
	for _, n := range []string{
		".env", ".env.local", ".env.production", "server.pem", "tls.key", "AuthKey.p8", "a.ppk", "a.p12", "a.pfx", "a.jks", "release.keystore", "id_rsa", "id_ed25519",
		".ssh", ".ssh/known_hosts", ".gnupg/x", ".aws/credentials", ".kube/config", ".docker/config.json", ".netrc", ".git-credentials", ".pypirc",
		".pgpass", "credentials.json", "service-account-prod.json", "client_secret_1.json", ".config/gcloud/x", ".cargo/credentials.toml", ".codex/auth.json",
	} {
		names[n] = "hidden"
	}
	for name, want := range names {
		for _, path := range []string{name, "a/" + name, "a/b/c/d/" + name, name + "/x", name + "/x/y", strings.ToUpper(name)} {
			if got := word(s.Judge(path)); got != want {
				t.Errorf("%s is %q, want %s", path, got, want)
			}
		}
		for _, tail := range []string{".", " ", "::$DATA", "\u200c", ". ."} {
			if got := word(s.Judge("a/" + name + tail)); got != want {
				t.Errorf("a/%s%s is %q, want %s", name, tail, got, want)
			}
		}
		first, rest, more := strings.Cut(name, "/")
		odd := first[:len(first)-1] + "\u200d" + first[len(first)-1:]
		if more {
			odd += "/" + rest
		}
		if got := word(s.Judge(odd)); got != want {
			t.Errorf("%+q is %q, want %s", odd, got, want)
		}
	}
	for path, want := range map[string]string{
		"git~1/hooks": "protected", "GIT~1/config": "protected", "a/GI7EB8~1/hooks/x": "hidden" /* it may be .git-credentials */, "VSCODE~1": "protected", "ENVRC~1": "protected",
		"git~1": "ancestor",
	} {
		if got := word(s.Judge(path)); got != want {
			t.Errorf("%s is %q, want %s", path, got, want)
		}
	}
}

// Ordinary trees have nothing hidden or protected in them.
func TestNoFalseHits(t *testing.T) {
	s := compile(t, Options{Mode: ReadWrite})
	for _, path := range []string{
		"", "main.go", "go.mod", "README.md", "Makefile", "package.json", ".gitignore", ".gitattributes", ".github/workflows/ci.yml", ".dockerignore",
		".git/HEAD", ".git/index", ".git/index.lock", ".git/objects/ab/cdef", ".git/refs/heads/main", ".git/refs/heads/hooks", ".git/refs/heads/config",
		".git/logs/HEAD", ".git/COMMIT_EDITMSG", ".git/packed-refs", ".git/info/exclude", ".git/objects/pack/pack-1.idx", ".git/config.lock",
		".git/MERGE_HEAD", ".git/MERGE_MSG", ".git/CHERRY_PICK_HEAD", ".git/REVERT_HEAD", ".git/ORIG_HEAD", ".git/AUTO_MERGE", ".git/refs/heads/rebase-merge",
		".git/refs/heads/sequencer", ".git/refs/bisect", ".git/rr-cache/x/preimage", "rebase-merge/x", "src/sequencer/todo", "BISECT_LOG",
		".gitlab-ci.yml", ".env.example", ".env.sample", "env", "environment.ts", "src/config/index.ts", "hooks/useState.ts", "config/app.js",
		"src/keys.go", "keyboard.key.ts", "monkey", "x.pem.go", "pem", ".editorconfig", ".eslintrc", ".prettierrc", ".nvmrc", ".python-version",
		"node_modules/a/.npmrc", "node_modules/a/.vscode/settings.json", "node_modules/@x/y/.idea/z", "node_modules/a/test/key.pem", "node_modules/a/.env",
		"node_modules/a/node_modules/b/.eslintrc", "node_modules/.bin/tsc", "node_modules/.package-lock.json", "web/node_modules/a/.husky/x",
		"node_modules/a/.bashrc", "node_modules/a/credentials.json",
		".venv/lib/python3.12/site-packages/certifi/cacert.pem", "venv/lib/python3/site-packages/x/y.pem", "lib/site-packages/a/.vscode/b",
		".venv/bin/python", ".venv/pyvenv.cfg", "conda/ssl/cacert.pem",
		"go/pkg/mod/github.com/a/b@v1.0.0/.vscode/settings.json", "go/pkg/mod/cache/download/x/@v/v1.zip", "pkg/mod/a@v1/testdata/server.key",
		"vendor/github.com/a/b/.cargo/config.toml", "vendor/a/.vscode/x", "vendor/modules.txt", "internal/tls/testdata/cert.pem", "test/fixtures/keys/a.key",
		"target/debug/deps/a.d", ".cargo/registry/src/x/.vscode/y", "build/app.desktop", "android/app/debug.keystore", "dist/index.js", "a~1", "b~2.txt",
		"Cargo.toml", "build.rs", "src/.keep", ".DS_Store", "x.app/Contents/Info.plist", "docs/ssh.md", "aws/main.tf", "docker/config.json", "kube/config",
	} {
		if v := s.Judge(path); v.Hidden || v.Protected {
			t.Errorf("%s: %s", path, v.Reason)
		}
	}
	// And what keeps its rules in such folders.
	for path, want := range map[string]string{
		"node_modules/a/.git/hooks/x": "protected", "vendor/a/.git/config": "protected", "node_modules/desktop.ini": "protected",
		"vendor/.env": "hidden", "node_modulesx/.env": "hidden", "a/testdatax/b.pem": "hidden", "pkg/.env": "hidden", "mod/.vscode": "protected",
	} {
		if got := word(s.Judge(path)); got != want {
			t.Errorf("%s is %q, want %s", path, got, want)
		}
	}
}

func TestAncestors(t *testing.T) {
	s := compile(t, Options{Mode: ReadWrite, Protect: lists("/a/b/c", "d/e", "x/**/y", "!x/z/y")})
	for path, want := range map[string]string{
		".git": "ancestor", "sub/.git": "ancestor", ".GIT": "ancestor", ".git/info": "ancestor", ".git/modules": "ancestor", ".git/worktrees": "ancestor",
		".git/modules/sub": "within", ".git/modules/sub/refs": "within", ".git/modules/sub/info": "ancestor", ".git/objects": "", "foo.git": "ancestor",
		".cargo": "ancestor", ".hg": "ancestor",
		"a": "ancestor", "a/b": "ancestor", "a/b/c": "protected", "z/a": "", "z/a/b": "", "a/x/c": "within",
		"d": "ancestor", "q/d": "ancestor", "q/d/e": "protected",
		"x": "ancestor", "x/1": "within", "x/1/2": "within", "x/y": "protected", "x/1/2/y/3": "protected", "x/z/y": "within",
	} {
		if got := word(s.Judge(path)); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

func TestSame(t *testing.T) {
	s := compile(t, Options{Mode: ReadWrite, Hide: lists("/top/secret")})
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"a", "b", true}, {"a/b", "c", true}, {"a/b/c", "d/e/f/g", true}, {"node_modules/a", "node_modules/b", true},
		{"node_modules/.tmp/a", "x/node_modules/a", true}, {".git/objects/x", "y", true}, {".git/modules/a", ".git/modules/b", true},
		{"a", ".git", false}, {".kube", "kube", false}, {"a", ".git/modules/a", false}, {"a", "node_modules/a", false}, {"top", "a", false},
		{"a/top", "a/b", true}, {"a/top", "top", false}, {"a", "x.git", false}, {".aws", "aws", false}, {"testdata", "data", false}, {".Cargo", "c", false},
	} {
		if got := s.Same(c.a, c.b); got != c.same || s.Same(c.b, c.a) != c.same {
			t.Errorf("%s and %s: %v, want %v", c.a, c.b, got, c.same)
		}
	}
	if (*Set)(nil).Same("a", "a") {
		t.Error("without rules something may move")
	}
}

// Later lists count, and a share's own take back what others say.
func TestOrder(t *testing.T) {
	s := compile(t, Options{
		Mode: ReadWrite,
		Hide: lists("/notes", "!.env.test", "*.secret", "!open.secret", "open.secret.bak", "deep/**/x?.[ab]"), Protect: lists("!.git/config", "!.git/hooks", "!*.git/config", "/lib"),
	})
	for path, want := range map[string]string{
		"notes": "hidden", "notes/a": "hidden", "a/notes": "", ".env.test": "", ".env.testing": "hidden", "a.secret": "hidden", "open.secret": "",
		"OPEN.SECRET": "", "open.secret.bak": "hidden", "deep/x1.a": "hidden", "deep/er/xx.b": "hidden", "deep/er/xx.c": "", "lib": "protected",
		".git/config": "", ".git/hooks/x": "", "a.git/hooks": "protected", ".git/config.worktree": "protected",
	} {
		if got := word(s.Judge(path)); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if v := s.Judge("notes/x"); v.Pattern != "/notes" || v.Origin != "policy.yaml:1" || !strings.Contains(v.Reason, "/notes") {
		t.Errorf("%+v", v)
	}
	if v := s.Judge(".env"); v.Origin != BuiltIn || v.Reason == "" {
		t.Errorf("%+v", v)
	}
}

func TestModes(t *testing.T) {
	var none *Set
	if v := none.Judge("a"); !v.Hidden || none.Mode() != Review || none.Plain() || none.Mode().Writes() {
		t.Error("no rules allow something")
	}
	for m, writes := range map[Mode]bool{Review: false, ReadOnly: false, ReadWrite: true, NoDelete: true} {
		if s := compile(t, Options{Mode: m}); s.Mode() != m || m.Writes() != writes {
			t.Errorf("%v: writes %v", m, m.Writes())
		}
	}
	if _, err := Compile(Options{Mode: NoDelete + 1}); err == nil {
		t.Error("a mode that is none was taken")
	}
	s := compile(t, Options{Mode: ReadWrite, Plain: true, Hide: lists("/a")})
	for _, p := range []string{".env", ".git/hooks/x", "a"} {
		if v := s.Judge(p); v != (Verdict{}) {
			t.Errorf("plain, and yet %s is %+v", p, v)
		}
	}
	if !s.Same(".git", "a") {
		t.Error("plain, and yet folders differ")
	}
}

func TestBadPatterns(t *testing.T) {
	for _, p := range []string{
		"", "!", "/", "!/", "a//b", "./a", "../a", "a/..", "a/./b", "**", "a/**", "*", "a/*", "a/*/b", "[", "a[", "a\\b", "a\nb", "a\x00b", "a:b", "a.", "a ",
		strings.Repeat("a", maxPattern+1), strings.Repeat("a/", maxParts) + "b",
	} {
		if err := Check(p); err == nil {
			t.Errorf("%.40q was taken", p)
		}
		if _, err := Compile(Options{Plain: true, Protect: lists(p)}); err == nil {
			t.Errorf("%.40q was taken in a plain share", p)
		}
	}
	for _, p := range []string{"a", "/a", "a/", "a/b", "**/a", "/a/**/b", "*.x", "x*", "x*y", "?", "[ab]", "!a", ".a", "a/**/**/b", "Ä"} {
		if err := Check(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	if _, err := Compile(Options{Hide: make([]List, MaxPatterns+1)}); err == nil {
		t.Error("too many patterns were taken")
	}
}

// The lists themselves: every pattern can be understood, says why, and names something.
func TestLists(t *testing.T) {
	for what, list := range map[string][]because{"hidden": hidden, "protected": protected, "looked": looked} {
		seen := map[string]bool{}
		for _, b := range list {
			if _, err := parse(b.pattern, true); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if (b.why == "") != strings.HasPrefix(b.pattern, "!") {
				t.Errorf("%s: %q because %q", what, b.pattern, b.why)
			}
			if seen[b.pattern] {
				t.Errorf("%s: %q twice", what, b.pattern)
			}
			seen[b.pattern] = true
		}
	}
}

func TestWarn(t *testing.T) {
	for _, path := range []string{
		"Makefile", "sub/makefile", "package.json", "AGENTS.md", "CLAUDE.md", "conftest.py", ".pre-commit-config.yaml", ".tool-versions", "mise.toml", ".DS_Store",
		"x.app/Contents/MacOS/x", ".venv/bin/python", "node_modules/.bin/tsc", ".git/HEAD", ".vscode/tasks.json", ".github/workflows/x.yml",
		".venv/lib/python3.12/site-packages/x.pth", "pyproject.toml", "setup.py", "build.rs", "a.command", ".gitattributes", ".githooks/pre-commit", ".husky/pre-commit", ".envrc", "desktop.ini", "x.desktop",
	} {
		if Warn(path) == "" {
			t.Errorf("nothing is said of %s", path)
		}
	}
	for _, path := range []string{"", "main.go", "src/a.ts", "README.md", "node_modules/a/package.json", "vendor/a/Makefile", "config", "hooks/x"} {
		if why := Warn(path); why != "" {
			t.Errorf("%s: %s", path, why)
		}
	}
	if why := Warn("a/.git/hooks/pre-commit"); why != "git on the host runs it" {
		t.Errorf("a hook: %q", why)
	}
}

// What holds for a path holds below it; and a name that folds to another is judged as that.
func FuzzJudge(f *testing.F) {
	for _, p := range []string{"a/.env/b", ".git/hooks", ".git/modules/a/b/hooks/c", "node_modules/a/.env", "a//b", "/", "..", "git~1/hooks", "x.GIT/config", "\xff/.env", "a/.e\u200bnv", "b/x.y/k/z"} {
		f.Add(p)
	}
	s := compile(f, Options{Mode: ReadWrite, Hide: lists("/b/**/k", "!b/x.y/k", "q*/[0-9]"), Protect: lists("m/**/n/**/o")})
	f.Fuzz(func(t *testing.T, p string) {
		v := s.Judge(p)
		below := s.Judge(p + "/below")
		if v.Hidden && !below.Hidden || v.Protected && !below.Protected && !below.Hidden {
			t.Errorf("%q is %+v, and below it %+v", p, v, below)
		}
		if v.Hidden && v.Protected || v.Hidden && v.Ancestor || v.Protected && v.Ancestor {
			t.Errorf("%q is %+v", p, v)
		}
		if !s.Same(p, p) {
			t.Errorf("%q is not the same as itself", p)
		}
		parts := strings.Split(p, "/")
		for i := range parts {
			parts[i] = Fold(parts[i])
		}
		folded := strings.Join(parts, "/")
		if strings.Count(folded, "/") == strings.Count(p, "/") && !strings.Contains(p, "~") {
			if got := s.Judge(folded); word(got) != word(v) {
				t.Errorf("%q is %q, and folded, %q, it is %q", p, word(v), folded, word(got))
			}
		}
		Warn(p)
	})
}

func TestJudgeCosts(t *testing.T) {
	s := compile(t, Options{Mode: ReadWrite})
	for _, p := range []string{"guest/share/rules/pattern.go", "web/node_modules/@scope/package/dist/index.js", ".git/objects/ab/cdef", "Upper/Case.TXT"} {
		if n := testing.AllocsPerRun(100, func() { s.Judge(p) }); n != 0 {
			t.Errorf("%s: %v allocations", p, n)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	s := compile(b, Options{Mode: ReadWrite})
	for _, p := range []string{"main.go", "guest/share/rules/pattern.go", "web/node_modules/@scope/package/dist/index.js", ".git/modules/a/objects/ab/cdef", "a/b/c/d/e/f/g/h/i/j/k.go"} {
		b.Run(strings.ReplaceAll(p, "/", "_"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Judge(p)
			}
		})
	}
}
