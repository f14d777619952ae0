package agent

import (
	"fmt"
	"strings"
)

// maxGit is how many hosts' remotes are rewritten at most.
const maxGit = 256

// gitRewriting are settings by which git reaches hosts over https where a
// remote says ssh.
func gitRewriting(hosts []string) (string, error) {
	if len(hosts) > maxGit {
		return "", fmt.Errorf("git's remotes of %d hosts to rewrite, %d is the limit", len(hosts), maxGit)
	}
	var b strings.Builder
	for _, h := range hosts {
		if !plainHost(h) {
			return "", fmt.Errorf("git's remotes to rewrite are of %.80q, which is no host name", h)
		}
		fmt.Fprintf(&b, "[url \"https://%[1]s/\"]\n\tinsteadOf = git@%[1]s:\n\tinsteadOf = ssh://git@%[1]s/\n", h)
	}
	return b.String(), nil
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
