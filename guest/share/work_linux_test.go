package share

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// A repository of the host's is worked on in a share that is written to: commits, branches, status. Its configuration and hooks stay.
func TestGitInRepository(t *testing.T) {
	root, mnt, _ := onLinux(t, Options{Rules: compile(t, rules.Options{Mode: rules.ReadWrite})})
	git(t, root, "init", "-q", "-b", "main", "--template=")
	layout(t, root, map[string]string{"a": "a", "b/c": "c", ".git/hooks/pre-commit": "#!/bin/sh\n"})
	git(t, root, "add", ".")
	git(t, root, "commit", "-qm", "first")
	config, err := os.ReadFile(filepath.Join(root, ".git/config"))
	want(t, "read", err, nil)

	layout(t, mnt, map[string]string{"a": "changed", "d/e": "new"})
	git(t, mnt, "add", ".")
	git(t, mnt, "commit", "-qm", "second")
	git(t, mnt, "checkout", "-q", "-b", "other", "HEAD~1")
	git(t, mnt, "checkout", "-q", "main")
	git(t, mnt, "gc", "-q")
	if out := git(t, mnt, "status", "--porcelain"); out != "" {
		t.Errorf("status: %s", out)
	}
	if out := git(t, root, "fsck", "--strict"); strings.Contains(out, "error") {
		t.Errorf("fsck on the host: %s", out)
	}
	// What can be done at once is; what would be left for somebody to continue is
	// not begun, and the repository stays as it was.
	git(t, mnt, "checkout", "-q", "other")
	layout(t, mnt, map[string]string{"e": "e"})
	git(t, mnt, "add", ".")
	git(t, mnt, "commit", "-qm", "third")
	git(t, mnt, "checkout", "-q", "main")
	git(t, mnt, "cherry-pick", "other")
	git(t, mnt, "revert", "--no-edit", "HEAD")
	git(t, mnt, "merge", "-q", "-m", "merge", "other")
	head := git(t, root, "rev-parse", "main")
	for _, args := range [][]string{{"rebase", "-x", "touch evil", "HEAD~1"}, {"bisect", "start"}, {"cherry-pick", "--allow-empty", "HEAD~1", "other"}, {"rebase", "--apply", "other~1"}} {
		if out, err := tryGit(mnt, args...); err == nil || !strings.Contains(out, "Operation not permitted") {
			t.Errorf("%q: %v: %s", args, err, out)
		}
	}
	for _, p := range []string{".git/rebase-merge", ".git/rebase-apply", ".git/sequencer", ".git/BISECT_START", "evil"} {
		if _, err := os.Lstat(filepath.Join(root, p)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if now := git(t, root, "rev-parse", "main"); now != head {
		t.Errorf("the branch is at %s, and was at %s", now, head)
	}
	git(t, root, "checkout", "-q", "main")               // a rebase by patches has let go of it before it finds out
	git(t, root, "rebase", "-q", "-x", "true", "HEAD~1") // the control: on the host it works
	for what, args := range map[string][]string{
		"config": {"config", "core.fsmonitor", "evil"}, "remote": {"remote", "add", "x", "https://example.com"}, "worktree": {"worktree", "add", "-q", "wt"},
	} {
		if out, err := tryGit(mnt, args...); err == nil || !strings.Contains(out, "Operation not permitted") {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
	for _, p := range []string{".git/hooks/pre-push", ".git/hooks/pre-commit", ".envrc", ".vscode/tasks.json"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(mnt, p)), 0o755); err == nil {
			want(t, p, os.WriteFile(filepath.Join(mnt, p), []byte("evil"), 0o755), unix.EPERM)
		} else {
			want(t, p, err, unix.EPERM)
		}
	}
	if now, _ := os.ReadFile(filepath.Join(root, ".git/config")); string(now) != string(config) {
		t.Errorf("the configuration has become %s", now)
	}
}

// A new repository needs a configuration of its own, which is a protected name also where there is none: git init and clone fail in a
// share that is written to, and say at which name; with `!.git/config` (and hooks, unless they come from an empty template) in the
// share's list, or in a plain share, they work.
func TestGitInitAndClone(t *testing.T) {
	source := t.TempDir()
	git(t, source, "init", "-q", "-b", "main", "--template=")
	layout(t, source, map[string]string{"f": "f"})
	git(t, source, "add", ".")
	git(t, source, "commit", "-qm", "first")
	try := func(o rules.Options, works bool) {
		_, mnt, _ := onLinux(t, Options{Rules: compile(t, o)})
		for name, args := range map[string][]string{"init": {"init", "-q", "--template="}, "clone": {"clone", "-q", "--template=", source}} {
			out, err := tryGit(mnt, append(args, filepath.Join(mnt, name))...)
			switch {
			case works && err != nil:
				t.Errorf("%s: %v\n%s", name, err, out)
			case !works && (err == nil || !strings.Contains(out, "config") || !strings.Contains(out, "Operation not permitted")):
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
	}
	try(rules.Options{Mode: rules.ReadWrite}, false)
	try(rules.Options{Mode: rules.ReadWrite, Protect: []rules.List{{Pattern: "!.git/config", Origin: "test"}}}, true)
	try(rules.Options{Mode: rules.ReadWrite, Plain: true}, true)
}

// The same work in a local folder and in a share gives the same tree.
func TestWorkloads(t *testing.T) {
	const script = `set -e
cd "$1"
export TZ=UTC LC_ALL=C
mkdir src; i=0
while [ $i -lt 84 ]; do mkdir -p src/d$((i%12)); printf 'file %s\n%s\n' $i "$(seq $i)" > src/d$((i%12))/f$i.txt; i=$((i+1)); done
ln -s d1/f1.txt src/link; ln src/d2/f2.txt src/hard; chmod 755 src/d3/f3.txt; chmod 600 src/d4/f4.txt
tar cf src.tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner src
mkdir out; tar xf src.tar -C out; diff -r src out/src
printf 'all: $(patsubst %%.txt,%%.o,$(wildcard src/*/*.txt))\n%%.o: %%.txt\n\t@tr a-z A-Z < $< > $@.tmp && mv $@.tmp $@\nclean:\n\t@rm -f src/*/*.o\n' > build.mk
make -s -j4 -f build.mk; make -s -f build.mk clean; make -s -j2 -f build.mk
cat src/*/*.o | sha256sum > sum
sed -i s/file/FILE/ src/d5/*.txt
git init -q -b main --template= repo; cp -a src repo/; cd repo; git add .; git commit -qm one; git rm -rq src/d1; git mv src/d2 src/moved; git commit -qam two
git checkout -q HEAD~1; git checkout -q main; git gc -q; git status --porcelain; git rev-parse HEAD HEAD^{tree} > ../heads; cd ..; rm -rf repo/.git
if command -v sqlite3 > /dev/null; then
  sqlite3 db 'create table t(a integer primary key, b text); begin; with recursive n(i) as (select 1 union all select i+1 from n where i<2000) insert into t select i, hex(i*i) from n; commit; delete from t where a%3=0; vacuum; pragma integrity_check' > sqlite
  sqlite3 db .dump >> sqlite; rm db
fi
rm src.tar; rm -rf out/src/d7; mv out moved
`
	run := func(dir string) string {
		cmd := exec.Command("sh", "-c", script, "sh", dir)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a",
			"GIT_COMMITTER_EMAIL=a@example.com", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("in %s: %v\n%s", dir, err, out)
		}
		return sumOf(t, dir)
	}
	local := run(t.TempDir())
	root, mnt, _ := onLinux(t, Options{})
	if got := run(mnt); got != local {
		t.Errorf("in the share\n%s\nin a local folder\n%s", got, local)
	}
	if got := sumOf(t, root); got != local {
		t.Errorf("on the host\n%s\nin a local folder\n%s", got, local)
	}
	if strings.Count(local, "\n") < 300 {
		t.Errorf("the work has made only\n%s", local)
	}
}

// What POSIX says of each call, after the manner of pjdfstest: the same error as a local folder gives.
func TestCalls(t *testing.T) {
	long := strings.Repeat("n", 255)
	setup := func(base string) error {
		at := func(p string) string { return filepath.Join(base, p) }
		return errors.Join(os.Mkdir(at("dir"), 0o755), os.Mkdir(at("full"), 0o755), os.WriteFile(at("full/f"), nil, 0o644), os.WriteFile(at("file"), []byte("0123456789"), 0o644),
			os.WriteFile(at("other"), nil, 0o644), os.Symlink("file", at("link")), os.Symlink("nothing", at("dangling")), os.Symlink("loop", at("loop")), os.Symlink("dir", at("dirlink")))
	}
	open := func(p string, flags int) error {
		fd, err := unix.Open(p, flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	calls := map[string]func(at func(string) string) error{}
	add := func(what string, call func(at func(string) string) error) { calls[what] = call }
	for _, p := range []string{"dir", "full", "file", "link", "dangling", "loop", "dirlink", "none", "none/x", "file/x", "loop/x", "dirlink/x", long, long + "n", "dir/" + long, "dir/.", "dir/..", "file/"} {
		add("mkdir "+p, func(at func(string) string) error { return unix.Mkdir(at("")+"/"+p, 0o755) })
		add("rmdir "+p, func(at func(string) string) error { return unix.Rmdir(at("") + "/" + p) })
		add("unlink "+p, func(at func(string) string) error { return unix.Unlink(at("") + "/" + p) })
		add("truncate "+p, func(at func(string) string) error { return unix.Truncate(at("")+"/"+p, 3) })
		add("chmod "+p, func(at func(string) string) error { return unix.Chmod(at("")+"/"+p, 0o640) })
		add("symlink "+p, func(at func(string) string) error { return unix.Symlink("target", at("")+"/"+p) })
		add("readlink "+p, func(at func(string) string) error {
			_, err := unix.Readlink(at("")+"/"+p, make([]byte, 99))
			return err
		})
		add("stat "+p, func(at func(string) string) error { return unix.Stat(at("")+"/"+p, new(unix.Stat_t)) })
		add("utimes "+p, func(at func(string) string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, at("")+"/"+p, []unix.Timespec{{Sec: 1}, {Sec: 2}}, 0)
		})
		for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_CREAT | unix.O_EXCL, unix.O_RDONLY | unix.O_DIRECTORY, unix.O_RDONLY | unix.O_NOFOLLOW, unix.O_WRONLY | unix.O_TRUNC} {
			add(fmt.Sprintf("open %#x %s", flags, p), func(at func(string) string) error { return open(at("")+"/"+p, flags) })
		}
		for _, q := range []string{"dir", "full", "file", "other", "link", "new", "dir/new", "none/new", "file/new", "full/sub", long + "n"} {
			add("rename "+p+" "+q, func(at func(string) string) error { return unix.Rename(at("")+"/"+p, at(q)) })
			add("link "+p+" "+q, func(at func(string) string) error { return unix.Link(at("")+"/"+p, at(q)) })
			add("noreplace "+p+" "+q, func(at func(string) string) error {
				return unix.Renameat2(unix.AT_FDCWD, at("")+"/"+p, unix.AT_FDCWD, at(q), unix.RENAME_NOREPLACE)
			})
			add("exchange "+p+" "+q, func(at func(string) string) error {
				return unix.Renameat2(unix.AT_FDCWD, at("")+"/"+p, unix.AT_FDCWD, at(q), unix.RENAME_EXCHANGE)
			})
		}
	}
	onFile := func(what string, flags int, call func(fd int) error) {
		add(what, func(at func(string) string) error {
			fd, err := unix.Open(at("file"), flags, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return call(fd)
		})
	}
	onFile("ftruncate of a file for reading", unix.O_RDONLY, func(fd int) error { return unix.Ftruncate(fd, 1) })
	onFile("ftruncate below 0", unix.O_RDWR, func(fd int) error { return unix.Ftruncate(fd, -1) })
	onFile("write to a file for reading", unix.O_RDONLY, func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err })
	onFile("read of a file for writing", unix.O_WRONLY, func(fd int) error { _, err := unix.Read(fd, make([]byte, 1)); return err })
	onFile("read at the end", unix.O_RDONLY, func(fd int) error {
		if n, err := unix.Pread(fd, make([]byte, 9), 10); n != 0 || err != nil {
			return fmt.Errorf("%d %w", n, err)
		}
		return nil
	})
	onFile("write below 0", unix.O_RDWR, func(fd int) error { _, err := unix.Pwrite(fd, []byte("x"), -1); return err })
	onFile("seek for data beyond the end", unix.O_RDWR, func(fd int) error { _, err := unix.Seek(fd, 99, unix.SEEK_DATA); return err })
	onFile("list a file", unix.O_RDONLY, func(fd int) error { _, err := unix.Getdents(fd, make([]byte, 999)); return err })
	onFile("fallocate of nothing", unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, 0, 0, 0) })

	number := func(err error) any {
		var e syscall.Errno
		if errors.As(err, &e) {
			return e
		}
		return err
	}
	root, mnt, _ := onLinux(t, Options{})
	bare := newFolder(t)
	i, differ := 0, 0
	for what, call := range calls {
		i++
		name := fmt.Sprint("case", i)
		var got [2]any
		for j, base := range []string{bare, mnt} {
			base = filepath.Join(base, name)
			want(t, "mkdir", os.Mkdir(base, 0o755), nil)
			want(t, "set up", setup(base), nil)
			got[j] = number(call(func(p string) string { return filepath.Join(base, p) }))
		}
		a, b := treeOf(t, filepath.Join(bare, name)), treeOf(t, filepath.Join(root, name))
		if got[0] != got[1] || a != b {
			differ++
			t.Errorf("%s: %v in a folder, %v in the share\n%s\n%s", what, got[0], got[1], a, b)
		}
	}
	t.Logf("%d calls, %d differ", i, differ)
}
