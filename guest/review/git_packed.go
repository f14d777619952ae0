package review

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	packedRefs = gitDir + "/packed-refs"
	// maxPackedRefs bounds the file in which git keeps many refs, in bytes.
	maxPackedRefs = 16 << 20
)

// packed reads the refs that the guest's git has packed, as git gc does, as far
// as they are not the host's own already. A ref in a file of its own comes
// before a packed one, as it does for git: those are in have. What the file has
// besides branches and tags is left; a line of it that is none is said.
func (g *gitImport) packed(have map[string]bool) (refs []gitRef, err error) {
	var e *Entry
	for _, x := range g.t.Store.Entries() {
		if x.Name == packedRefs && x.Kind == File && !x.Hidden {
			e = &x
		}
	}
	if e == nil {
		return nil, nil
	}
	bad := func(err error) []gitRef { return append(refs, gitRef{name: "packed-refs", err: err}) }
	if e.Size > maxPackedRefs {
		return bad(fmt.Errorf("the guest's packed refs have %d bytes; %d are read", e.Size, maxPackedRefs)), nil
	}
	text, err := g.text(e, maxPackedRefs)
	if err != nil {
		return bad(err), nil
	}
	// A host's that cannot be read is none: then every ref is brought.
	own := map[string]gitID{}
	if text, err := g.hostText(packedRefs, maxPackedRefs); err == nil {
		eachPacked(text, func(name string, id gitID) error { own[name] = id; return nil })
	}
	err = eachPacked(text, func(name string, id gitID) error {
		name = strings.TrimPrefix(name, "refs/")
		if have[name] || !strings.HasPrefix(name, "heads/") && !strings.HasPrefix(name, "tags/") {
			return nil
		}
		if is, packed := own["refs/"+name]; packed && is == id {
			if _, err := g.hostText(gitDir+"/refs/"+name, maxRef); err != nil { // no newer one
				return nil
			}
		}
		if !goodRef(name) {
			return fmt.Errorf("%.80q is not a name for a ref", name)
		}
		if line, err := g.hostText(gitDir+"/refs/"+name, maxRef); err == nil {
			if is, err := parseID(strings.TrimSuffix(line, "\n")); err == nil && is == id {
				return nil
			}
		}
		have[name] = true
		if refs = append(refs, gitRef{name: name, id: id}); len(refs) > maxGitRefs {
			return errTooManyRefs
		}
		return nil
	})
	if errors.Is(err, errTooManyRefs) {
		return nil, err
	}
	if err != nil {
		return bad(err), nil
	}
	return refs, nil
}

var errTooManyRefs = fmt.Errorf("the guest has changed more than %d refs", maxGitRefs)

// eachPacked reads a file of packed refs: comments, refs, and below a tag's what
// it leads to.
func eachPacked(text string, take func(name string, id gitID) error) error {
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		if line == "" || line[0] == '#' {
			continue
		}
		rest, peeled := strings.CutPrefix(line, "^")
		word, name, named := strings.Cut(rest, " ")
		id, err := parseID(word)
		if err != nil || named == peeled || !peeled && !strings.HasPrefix(name, "refs/") {
			return fmt.Errorf("line %d of the guest's packed refs is none", n)
		}
		if peeled {
			continue
		}
		if err := take(name, id); err != nil {
			return err
		}
	}
	return nil
}

// hostText reads a short file of the host's repository.
func (g *gitImport) hostText(path string, most int64) (string, error) {
	f, err := g.t.Root.Folder(parent(path))
	if err != nil {
		return "", err
	}
	defer f.Close()
	h, info, err := f.Open(base(path))
	if err != nil {
		return "", err
	}
	defer h.Close()
	if info.Size > most {
		return "", fmt.Errorf("%s has %d bytes", path, info.Size)
	}
	b, err := io.ReadAll(io.NewSectionReader(h, 0, info.Size))
	return string(b), err
}
