package egresstest

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// GitToken opens the world's private repository.
const GitToken = "ghp_TOKEN5d41402abc4b2a76b9719d911017c592"

// The world's repositories.
const (
	PublicRepository  = "octo/public"
	PrivateRepository = "octo/private"
	// ForeignRepository opens by the same token, and no definition names it.
	ForeignRepository = "octo/foreign"
	// GitContent is what the file README says in each of them.
	GitContent = "the repository's own words\n"
)

// Git stands in for github.com: smart HTTP by git's own http-backend, and a word
// of the REST API.
type Git struct {
	root, backend string
}

// newGit makes the repositories beneath dir.
func newGit(t testing.TB, dir string) *Git {
	t.Helper()
	g := &Git{root: filepath.Join(dir, "git")}
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatalf("git --exec-path: %v (apt-get install git)", err)
	}
	g.backend = filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(g.backend); err != nil {
		t.Fatalf("git's http-backend: %v (apt-get install git)", err)
	}
	tree := filepath.Join(dir, "tree")
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "HOME="+dir,
			"GIT_AUTHOR_NAME=Octo", "GIT_AUTHOR_EMAIL=octo@example.com", "GIT_COMMITTER_NAME=Octo", "GIT_COMMITTER_EMAIL=octo@example.com")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	git("init", "-q", "-b", "main")
	if err := os.WriteFile(filepath.Join(tree, "README"), []byte(GitContent), 0o644); err != nil {
		t.Fatal(err)
	}
	git("add", "README")
	git("commit", "-q", "-m", "The first word")
	for _, r := range []string{PublicRepository, PrivateRepository, ForeignRepository} {
		bare := filepath.Join(g.root, r+".git")
		git("clone", "-q", "--bare", tree, bare)
		git("--git-dir", bare, "config", "http.receivepack", "true")
	}
	return g
}

// Head is the commit of a repository's branch.
func (g *Git) Head(t testing.TB, repository, branch string) string {
	t.Helper()
	cmd := exec.Command("git", "--git-dir", filepath.Join(g.root, repository+".git"), "rev-parse", branch)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(out))
}

func (g *Git) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		ok := password == GitToken || r.Header.Get("Authorization") == "Bearer "+GitToken
		if name, api := strings.CutPrefix(r.URL.Path, "/repos/"); api {
			if !ok {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprintf(w, "{\"full_name\":%q}\n", name)
			return
		}
		if !strings.HasPrefix(r.URL.Path, "/"+PublicRepository+".git/") && !strings.HasPrefix(r.URL.Path, "/"+PublicRepository+"/") && !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="the world"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// A name without .git means the same repository, as it does there.
		if parts := strings.SplitN(r.URL.Path, "/", 4); len(parts) == 4 && !strings.HasSuffix(parts[2], ".git") {
			r.URL.Path = "/" + parts[1] + "/" + parts[2] + ".git/" + parts[3]
		}
		h := cgi.Handler{Path: g.backend, Dir: g.root, Env: []string{
			"GIT_PROJECT_ROOT=" + g.root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=octo",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		}}
		h.ServeHTTP(w, r)
	})
}
