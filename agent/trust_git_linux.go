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
)

// gitInclude has git read gitFile, if it is there.
const gitInclude = "[include]\n\tpath = " + gitFile + "\n"

// gitTemplate has git copy nothing into a new repository. What it would copy
// are examples of hooks, and in a share hooks are protected: git init and git
// clone would fail.
func gitTemplate() []string {
	if err := os.Mkdir(emptyDir, 0o555); err != nil && !errors.Is(err, fs.ErrExist) {
		complain(err)
		return nil
	}
	return []string{"GIT_TEMPLATE_DIR=" + emptyDir}
}

// rewriteGit has git reach hosts over https where a remote says ssh, so that
// rules and secrets apply. What the image says in its settings stays.
func rewriteGit(root string, hosts []string) error {
	if len(hosts) == 0 {
		return nil
	}
	rewriting, err := gitRewriting(hosts)
	if err != nil {
		return err
	}
	if err := place(root+gitFile, rewriting); err != nil {
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
