package review

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/carrel-vm/carrel/guest/share"
)

// What a guest has committed comes to the host as objects and refs, never as
// the files that a guest's git wrote:
//
//  1. the guest's loose objects and packs are read, each object inflated within
//     bounds and hashed by us
//  2. from each branch and tag everything that can be reached is walked: each
//     object is of the four types, of the type that its referrer says, well
//     formed, and either among the guest's or the host's already
//  3. what the host does not have is written as loose objects, contents first
//  4. refs/carrel/NAME/ gets the refs whose history is complete
//
// The guest's config, hooks, info and alternates are not looked at, its
// branches never become the host's, and no git runs.

// Bounds of one import of commits.
const (
	maxGitObjects = 1_000_000
	maxGitObject  = 128 << 20 // bytes of one object
	maxGitBytes   = 8 << 30   // bytes inflated in all, deltas counted each time
	maxGitRefs    = 10_000
	maxGitDelta   = 256 // deltas upon each other
)

const gitDir = ".git"

// ImportGit brings the commits of a guest into the host's repository at the
// share's root, as refs/carrel/NAME/, and tells of each ref. A ref that cannot
// be brought is told with its reason; the others are.
func (t *Target) ImportGit(ctx context.Context, guest string, dryRun bool, tell func(Event) error) error {
	unlock, got, err := t.Store.lock("applying", false)
	switch {
	case err != nil:
		return err
	case !got:
		return ErrBusy
	}
	defer unlock()
	if err := t.Store.Reload(); err != nil {
		return err
	}
	if !goodRefPart(guest) {
		return fmt.Errorf("the guest's name %.40q cannot be a part of a ref", guest)
	}
	g := &gitImport{t: t, ctx: ctx, objects: map[gitID]gitSource{}, left: maxGitBytes}
	defer g.close()
	refs, err := g.refs()
	if err != nil || len(refs) == 0 {
		return err
	}
	if err := g.openHost(); err != nil {
		return err
	}
	for _, r := range refs {
		to := "refs/carrel/" + guest + "/" + r.name
		e := Event{Path: gitDir + "/" + to, Kind: Added}
		if is, err := t.Root.Lstat(e.Path); err == nil && is.Mode.IsRegular() {
			e.Kind = Changed
		}
		err := r.err
		if err == nil && !g.read {
			err = g.load()
		}
		if err == nil {
			err = g.bring(r.id, dryRun)
		}
		if err == nil && !dryRun {
			err = g.writeRef(to, r.id)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && share.IsFull(err):
			return err
		case err != nil:
			e.Refused = clip(err.Error())
		}
		if err := tell(e); err != nil {
			return err
		}
	}
	return nil
}

// gitImport is one import under way.
type gitImport struct {
	t   *Target
	ctx context.Context
	// objects are the guest's, each hashed by us.
	objects map[gitID]gitSource
	packs   []*gitPack
	read    bool
	left    int64 // bytes that may still be inflated
	host    gitHost
}

func (g *gitImport) close() {
	for _, p := range g.packs {
		p.close()
	}
	g.host.close()
}

// gitRef is a ref of the guest, "heads/main".
type gitRef struct {
	name string
	id   gitID
	err  error
}

// refs reads the refs that the guest has changed.
func (g *gitImport) refs() (refs []gitRef, err error) {
	have := map[string]bool{}
	for _, e := range g.t.Store.Entries() {
		name, ok := strings.CutPrefix(e.Name, gitDir+"/refs/")
		if e.Name == gitDir+"/HEAD" {
			name, ok = "HEAD", true
		} else if !strings.HasPrefix(name, "heads/") && !strings.HasPrefix(name, "tags/") {
			ok = false
		}
		if !ok || e.Kind != File || e.Hidden {
			continue
		}
		r := gitRef{name: name}
		text, err := g.text(&e, maxRef)
		switch {
		case err != nil:
			r.err = err
		case name == "HEAD" && strings.HasPrefix(text, "ref:"):
			continue // the branch says more
		case !goodRef(name):
			r.err = errors.New("this is not a name for a ref")
		default:
			r.id, r.err = parseID(strings.TrimSuffix(text, "\n"))
		}
		if refs = append(refs, r); len(refs) > maxGitRefs {
			return nil, errTooManyRefs
		}
		have[name] = true
	}
	packed, err := g.packed(have)
	return append(refs, packed...), err
}

// maxRef bounds a file that has one ref, in bytes.
const maxRef = 1024

// text reads a file of the guest's.
func (g *gitImport) text(e *Entry, most int64) (string, error) {
	f, err := g.t.Store.Blob(e.Blob)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
	return string(b), err
}

// goodRef is git-check-ref-format(1), and stricter: no byte that a shell, a
// terminal or another file system would take for something else.
func goodRef(name string) bool {
	if len(name) > 200 || strings.Contains(name, "..") || strings.Contains(name, "@{") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if !goodRefPart(part) {
			return false
		}
	}
	return true
}

func goodRefPart(part string) bool {
	if part == "" || part == "@" || part[0] == '.' || part[0] == '-' || strings.HasSuffix(part, ".") || strings.HasSuffix(strings.ToLower(part), ".lock") {
		return false
	}
	return strings.IndexFunc(part, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-+=@#%,", c))
	}) < 0
}

// load finds the guest's objects.
func (g *gitImport) load() error {
	g.read = true
	for _, e := range g.t.Store.Entries() {
		name, ok := strings.CutPrefix(e.Name, gitDir+"/objects/")
		if !ok || e.Kind != File || e.Hidden || e.Blob == "" {
			continue
		}
		if err := g.ctx.Err(); err != nil {
			return err
		}
		if len(g.objects) > maxGitObjects {
			return fmt.Errorf("the guest has more than %d objects", maxGitObjects)
		}
		dir, file, _ := strings.Cut(name, "/")
		if id, err := parseID(dir + file); err == nil && len(dir) == 2 {
			g.objects[id] = gitSource{blob: e.Blob}
			continue
		}
		if dir == "pack" && strings.HasSuffix(file, ".pack") {
			if err := g.loadPack(&e); err != nil {
				return fmt.Errorf("the guest's pack %.80q: %w", file, err)
			}
		}
	}
	return nil
}

// bring checks all that can be reached from id, and writes what the host has
// not: what is needed before what needs it.
func (g *gitImport) bring(id gitID, dryRun bool) error {
	type todo struct {
		id   gitID
		kind gitKind // 0: any
		back bool    // all that it names was looked at
	}
	var write []gitID
	kinds := map[gitID]gitKind{}
	for stack := []todo{{id: id}}; len(stack) > 0; {
		if err := g.ctx.Err(); err != nil {
			return err
		}
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if at.back {
			write = append(write, at.id)
			continue
		}
		if kind, seen := kinds[at.id]; seen {
			if at.kind != 0 && kind != at.kind {
				return fmt.Errorf("%s is a %s where a %s belongs", at.id, kind, at.kind)
			}
			continue
		}
		if len(kinds) >= maxGitObjects {
			return fmt.Errorf("its history has more than %d objects", maxGitObjects)
		}
		kind, err := g.host.has(at.id)
		if err != nil {
			return err
		}
		var content []byte
		hosts := kind != 0
		if !hosts {
			if kind, content, err = g.object(at.id); err != nil {
				return err
			}
		}
		if at.kind != 0 && kind != at.kind {
			return fmt.Errorf("%s is a %s where a %s belongs", at.id, kind, at.kind)
		}
		if kinds[at.id] = kind; hosts {
			continue
		}
		next, err := gitRefers(kind, content)
		if err != nil {
			return fmt.Errorf("the %s %s: %w", kind, at.id, err)
		}
		stack = append(stack, todo{id: at.id, back: true})
		for _, n := range next {
			stack = append(stack, todo{id: n.id, kind: n.kind})
		}
	}
	if dryRun {
		return nil
	}
	for _, id := range write {
		kind, content, err := g.object(id)
		if err != nil {
			return err
		}
		if err := g.host.write(id, kind, content); err != nil {
			return err
		}
	}
	return g.host.sync()
}

// writeRef points a ref of ours at an object.
func (g *gitImport) writeRef(name string, id gitID) error {
	dir := gitDir
	parts := strings.Split(name, "/")
	for _, part := range parts[:len(parts)-1] {
		if err := g.host.mkdir(dir, part); err != nil {
			return err
		}
		dir += "/" + part
	}
	return g.host.replace(dir, parts[len(parts)-1], []byte(hex.EncodeToString(id[:])+"\n"))
}

// openHost looks at the host's repository, which must be one of the plain kind.
func (g *gitImport) openHost() error {
	const cure = "fetch in a plain clone of the folder"
	is, err := g.t.Root.Lstat(gitDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Error{Code: "no_repository", Cause: "the host has no repository in " + g.t.Root.Path(), Cure: "git init there, then do the same again"}
	case err != nil:
		return err
	case !is.Mode.IsDir():
		return &Error{Code: "no_repository", Cause: "the host's .git is no folder, but leads to a repository elsewhere", Cure: cure}
	}
	if _, err := g.t.Root.Lstat(gitDir + "/reftable"); err == nil {
		return &Error{Code: "no_repository", Cause: "the host's repository keeps its refs in tables, which this does not write", Cure: cure}
	}
	g.host.root = g.t.Root
	return g.host.open()
}

// gitTypes are sorted as git sorts them in a pack.
var gitTypes = []string{"", "commit", "tree", "blob", "tag"}

// gitKind is a type of object: 1 to 4.
type gitKind uint8

const (
	gitCommit gitKind = iota + 1
	gitTree
	gitBlob
	gitTag
)

func (k gitKind) String() string { return gitTypes[min(int(k), 4)] }

func kindNamed(name string) (gitKind, error) {
	if n := slices.Index(gitTypes, name); n > 0 {
		return gitKind(n), nil
	}
	return 0, fmt.Errorf("%.20q is no type of object", name)
}
