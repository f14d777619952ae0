package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	// gitFile rewrites git's ssh remotes; it is the guest's root's alone.
	gitFile = carrelDir + "/gitconfig"
	// systemGit is read before the user's settings, which win.
	systemGit = "/etc/gitconfig"
	maxGit    = 256
)

// gitInclude has git read gitFile, if it is there.
const gitInclude = "[include]\n\tpath = " + gitFile + "\n"

// rewriteGit has git reach hosts over https where a remote says ssh, so that
// rules and secrets apply. What the image says in its settings stays.
func rewriteGit(root string, hosts []string) error {
	if len(hosts) == 0 {
		return nil
	}
	if len(hosts) > maxGit {
		return fmt.Errorf("git's remotes of %d hosts to rewrite, %d is the limit", len(hosts), maxGit)
	}
	var b strings.Builder
	for _, h := range hosts {
		if !plainHost(h) {
			return fmt.Errorf("git's remotes to rewrite are of %.80q, which is no host name", h)
		}
		fmt.Fprintf(&b, "[url \"https://%[1]s/\"]\n\tinsteadOf = git@%[1]s:\n\tinsteadOf = ssh://git@%[1]s/\n", h)
	}
	if err := place(root+gitFile, b.String()); err != nil {
		return fmt.Errorf("write git's rewriting: %w", err)
	}
	old, err := os.ReadFile(root + systemGit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read git's settings: %w", err)
	}
	if strings.Contains(string(old), gitInclude) {
		return nil
	}
	if len(old) > 0 && old[len(old)-1] != '\n' {
		old = append(old, '\n')
	}
	if err := place(root+systemGit, string(old)+gitInclude); err != nil {
		return fmt.Errorf("add to git's settings: %w", err)
	}
	return nil
}

// plainHost refuses what could mean something in git's settings.
func plainHost(h string) bool {
	for i := range len(h) {
		c := h[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return h != "" && len(h) <= 253
}
