package agent

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	root := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		if err := place(root+path, content); err != nil {
			t.Fatal(err)
		}
	}
	write("/etc/gitconfig", "[safe]\n\tdirectory = *")
	write("/etc/nsswitch.conf", "passwd: files\nhosts:\tfiles mdns # dns\nnetworks: files\n")
	write("/somewhere/stub.conf", "nameserver 127.0.0.53\n")
	if err := os.Symlink("../somewhere/stub.conf", root+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := settleNames(root, nil, []string{"github.com", "gitlab.example"}); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{
			"/etc/gitconfig":       "[safe]\n\tdirectory = *\n" + gitInclude,
			"/etc/nsswitch.conf":   "passwd: files\nhosts: files dns\nnetworks: files\n",
			"/etc/resolv.conf":     resolver,
			"/somewhere/stub.conf": "nameserver 127.0.0.53\n",
		} {
			if b, err := os.ReadFile(root + path); err != nil || string(b) != want {
				t.Errorf("%s is %q, %v", path, b, err)
			}
		}
	}
	for conf, same := range map[string]bool{
		"hosts: files dns\n": true, "hosts: files myhostname resolve [!UNAVAIL=return] dns": true,
		"hosts:files mdns4_minimal [NOTFOUND=return] dns mdns4\n": true, "passwd: files\n": true, "": true,
		"hosts: files\n": false,
	} {
		if got, changed := askDNS(conf); changed == same || same && got != conf {
			t.Errorf("%q becomes %q", conf, got)
		}
	}
	for _, h := range []string{"", "a b", "a\"]", "a\nb", "A.example", "ä.example", strings.Repeat("a", 254)} {
		if err := rewriteGit(root, []string{h}); err == nil {
			t.Errorf("%q is taken for a host of git's", h)
		}
	}
}

// TestGitRewrites has the real git say what it makes of remotes.
func TestGitRewrites(t *testing.T) {
	tool, err := exec.LookPath("git")
	if err != nil {
		t.Fatal("this test needs git (scripts/setup installs it)")
	}
	root := t.TempDir()
	if err := rewriteGit(root, []string{"github.com"}); err != nil {
		t.Fatal(err)
	}
	for remote, want := range map[string]string{
		"git@github.com:o/r.git":        "https://github.com/o/r.git",
		"ssh://git@github.com/o/r.git":  "https://github.com/o/r.git",
		"https://github.com/o/r.git":    "https://github.com/o/r.git",
		"git@github.com.evil.test:o/r":  "git@github.com.evil.test:o/r",
		"git@gitlab.example:o/r.git":    "git@gitlab.example:o/r.git",
		"ssh://git@github.com.evil/o/r": "ssh://git@github.com.evil/o/r",
	} {
		cmd := exec.Command(tool, "ls-remote", "--get-url", remote)
		cmd.Dir = root
		cmd.Env = []string{"GIT_CONFIG_SYSTEM=" + root + gitFile, "GIT_CONFIG_GLOBAL=/dev/null", "HOME=" + root, "PATH=" + os.Getenv("PATH")}
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s becomes %s, %v, want %s", remote, got, err, want)
		}
	}
}
