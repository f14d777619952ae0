package review

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/carrel-vm/carrel/guest/share"
)

// ignorer says what the host's own ignore rules leave out of a review: its
// .gitignore files at all levels and .git/info/exclude, as the host has them
// and not as the guest has changed them. They are read beneath the root, and
// through no link. What is outside of the folder does not count: the user's own
// list, and a repository that the folder is only a part of.
//
// What is tracked is never left out. Where no list of tracked files can be read
// (there is no repository, or it is damaged, split or elsewhere), everything
// that the host has counts as tracked: better to show too much.
type ignorer struct {
	root *share.Root
	dirs map[string]*ignoreDir
	left int // bytes that may still be read
}

// ignoreDir is what is known of a folder.
type ignoreDir struct {
	up *ignoreDir
	// out: it is left out, with all that is below it.
	out   bool
	depth int // parts of its name
	list  []ignorePattern
	repo  *ignoreRepo
}

// ignoreRepo is a repository in the share.
type ignoreRepo struct {
	depth   int
	exclude []ignorePattern
	// tracked has files, and the folders that they are in; nil: not known.
	tracked map[string]bool
	// name is of its folder.
	name string
}

const (
	maxIgnoreFile  = 512 << 10
	maxIgnoreBytes = 32 << 20
	maxIgnoreDirs  = 100_000
)

func newIgnorer(root *share.Root) *ignorer {
	return &ignorer{root: root, dirs: map[string]*ignoreDir{}, left: maxIgnoreBytes}
}

// ignored judges a name; dir says what the guest, or else the host, has there,
// and host what the host has.
func (g *ignorer) ignored(name string, dir bool, host *share.Info) bool {
	in := g.folder(parent(name))
	if !in.out && !in.matches(name, dir) {
		return false
	}
	if inGit(name) {
		return false // it is left out of a review for another reason
	}
	return !in.tracks(name, host)
}

func (d *ignoreDir) tracks(name string, host *share.Info) bool {
	if d.repo == nil || d.repo.tracked == nil {
		return host != nil
	}
	return d.repo.tracked[strings.TrimPrefix(name[len(d.repo.name):], "/")]
}

// matches asks the folder's list, then those above, up to the repository's.
func (d *ignoreDir) matches(name string, dir bool) bool {
	parts := strings.Split(name, "/")
	for at := d; at != nil; at = at.up {
		if out, said := asked(at.list, parts[at.depth:], dir); said {
			return out
		}
		if at.repo != nil && at.depth == at.repo.depth {
			out, _ := asked(at.repo.exclude, parts[at.depth:], dir)
			return out
		}
	}
	return false
}

// asked goes through a list: the last word counts.
func asked(list []ignorePattern, parts []string, dir bool) (out, said bool) {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].match(parts, dir) {
			return !list[i].except, true
		}
	}
	return false, false
}

// folder returns what is known of a folder, "" for the root.
func (g *ignorer) folder(name string) *ignoreDir {
	if d := g.dirs[name]; d != nil {
		return d
	}
	d := &ignoreDir{}
	if name != "" {
		d.up = g.folder(parent(name))
		d.depth = d.up.depth + 1
		d.repo = d.up.repo
		d.out = d.up.out || d.up.matches(name, true)
	}
	if len(g.dirs) >= maxIgnoreDirs { // nothing of its own is known then
		return d
	}
	g.dirs[name] = d
	if d.out || inGit(name) {
		return d
	}
	if repo := g.repo(name, d.depth); repo != nil {
		d.repo = repo
	}
	d.list = parseIgnore(g.read(join(name, ".gitignore"), maxIgnoreFile))
	return d
}

// repo looks for a repository in a folder.
func (g *ignorer) repo(name string, depth int) *ignoreRepo {
	git := join(name, ".git")
	is, err := lstat(g.root, git)
	if err != nil || is == nil {
		return nil
	}
	r := &ignoreRepo{name: name, depth: depth}
	if !is.Mode.IsDir() { // it is elsewhere, and not gone after
		return r
	}
	r.exclude = parseIgnore(g.read(join(git, "info/exclude"), maxIgnoreFile))
	b, err := readFile(g.root, join(git, "index"), maxGitIndex)
	if errors.Is(err, fs.ErrNotExist) { // nothing was added yet
		r.tracked = map[string]bool{}
		return r
	}
	tracked := map[string]bool{}
	if err == nil {
		err = parseGitIndex(b, func(name string) {
			for ; name != "" && !tracked[name]; name = parent(name) {
				tracked[name] = true
			}
		})
	}
	if err == nil {
		r.tracked = tracked
	}
	return r
}

// read reads a file of rules. One that cannot be read has none.
func (g *ignorer) read(name string, max int) []byte {
	b, err := readFile(g.root, name, int64(min(max, g.left)))
	if err != nil {
		return nil
	}
	g.left -= len(b)
	return b
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
