//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Listed are names that may not come to be, each with what lies below it.
var listed = []string{
	".git/hooks/post-merge", ".git/config", ".git/commondir", ".git/modules/a/b/hooks/x", ".git/worktrees/w/config.worktree",
	".envrc", ".vscode/tasks.json", ".idea/x", ".devcontainer/x", ".claude/settings.json", ".cursor/x", ".codex/x", ".mcp.json",
	".husky/x", ".npmrc", ".gdbinit", "desktop.ini", "a.lnk", "sub/deep/.git/hooks/x", "bare.git/hooks/x", "bare.git/config",
	".env", ".env.local", "id_rsa", ".ssh/config", ".aws/credentials", "server.key",
}

// aliases are the same for a file system of another host.
var aliases = []string{
	".GIT/hooks/x", ".Git/Hooks/x", ".g\u200cit/hooks/x", ".git\u200d/config", ".git./hooks/x", ".git /hooks/x", ".git::$INDEX_ALLOCATION/hooks/x",
	"git~1/hooks/x", "GIT~1/config", ".ENVRC", ".envrc.", ".env\u200brc", ".VSCODE/tasks.json", ".vſcode/tasks.json", "\uff0egit/hooks/x",
	".Claude/settings.json", ".ENV", ".env.", "ID_RSA", "id_rsa ", "id_rsa::$DATA", ".\ufeffenv", "SERVER.KEY",
}

// names tries to have each of the names there, and to change those that are.
func names(d string) error {
	os.Chdir(d)
	tries, done := 0, 0
	try := func(err error) {
		if tries++; err == nil {
			done++
		}
	}
	make := func(name string) error { return os.WriteFile(name, []byte("EVIL"), 0o755) }
	for i, name := range append(append([]string{"harmless/x", "plain.txt"}, listed...), aliases...) {
		src, tree := fmt.Sprintf("src%d", i), fmt.Sprintf("tree%d", i)
		if err := make(src); err != nil {
			return err
		}
		os.MkdirAll(filepath.Dir(name), 0o755)
		top := name
		for filepath.Dir(top) != "." {
			top = filepath.Dir(top)
		}
		try(make(name))
		try(os.Symlink("/tmp/evil", name+".l"))
		try(os.Symlink(src, name))
		try(os.Link(src, name))
		try(unix.Mknod(name, unix.S_IFREG|0o644, 0))
		try(os.Mkdir(name, 0o755))
		try(os.Rename(src, name))
		try(unix.Renameat2(unix.AT_FDCWD, src, unix.AT_FDCWD, name, unix.RENAME_EXCHANGE))
		try(unix.Renameat2(unix.AT_FDCWD, src, unix.AT_FDCWD, name, unix.RENAME_WHITEOUT))
		// What is there: changed, cut, removed, moved, given another name, read.
		try(os.Chmod(name, 0o777))
		try(os.Truncate(name, 0))
		try(os.Link(name, src+".link"))
		try(os.Rename(name, src+".moved"))
		try(os.Remove(name))
		if f, err := os.OpenFile(name, os.O_RDWR, 0); err == nil {
			f.WriteString("EVIL")
			f.Close()
		}
		// An ancestor is put in place with all that it holds, or taken away.
		below, err := filepath.Rel(top, name)
		if err == nil && below != "." {
			os.MkdirAll(filepath.Join(tree, filepath.Dir(below)), 0o755)
			make(filepath.Join(tree, below))
			try(os.Rename(tree, top))
			try(unix.Renameat2(unix.AT_FDCWD, tree, unix.AT_FDCWD, top, unix.RENAME_EXCHANGE))
			try(os.Rename(top, tree+".away"))
			try(os.Symlink(tree, top))
			os.Remove(filepath.Dir(name))
			try(os.Symlink("/tmp", filepath.Dir(name)))
			try(os.Rename(filepath.Join(tree, filepath.Dir(below)), filepath.Dir(name)))
		}
		if b, err := os.ReadFile(name); err == nil && i > 1 {
			fmt.Printf("read %q: %.20q\n", name, b)
		}
	}
	// Through names that lead back.
	for _, name := range []string{"harmless/../.env", "./.git/../.env", "harmless/./../.git/hooks/pre-commit"} {
		try(make(name))
	}
	fmt.Printf("tries %d done %d\n", tries, done)
	return nil
}
