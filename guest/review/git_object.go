package review

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/pjbgf/sha1cd"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// gitID is the SHA-1 of an object.
type gitID [20]byte

func (id gitID) String() string { return hex.EncodeToString(id[:])[:12] }

func parseID(s string) (id gitID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || hex.EncodeToString(b) != s {
		return id, fmt.Errorf("%.70q is not the SHA-1 of an object", s)
	}
	return gitID(b), nil
}

// hashObject hashes as git does. Contents that were made to collide are an
// error.
func hashObject(kind gitKind, content []byte) (id gitID, err error) {
	h := sha1cd.New().(sha1cd.CollisionResistantHash)
	fmt.Fprintf(h, "%s %d\x00", kind, len(content))
	h.Write(content)
	sum, collides := h.CollisionResistantSum(nil)
	if collides {
		return id, errors.New("an object was made to have the same SHA-1 as another")
	}
	return gitID(sum), nil
}

// gitSource is where an object of the guest's is.
type gitSource struct {
	blob string // of the store, a loose object
	pack *gitPack
	at   int64
}

// object reads an object of the guest's, and makes sure that it is the one that
// is asked for.
func (g *gitImport) object(id gitID) (gitKind, []byte, error) {
	src, ok := g.objects[id]
	if !ok {
		return 0, nil, fmt.Errorf("the object %s is neither the guest's nor the host's: its history is not complete", id)
	}
	var kind gitKind
	var content []byte
	var err error
	if src.pack != nil {
		kind, content, err = src.pack.object(src.at)
	} else {
		kind, content, err = g.loose(src.blob)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("the object %s: %w", id, err)
	}
	is, err := hashObject(kind, content)
	if err == nil && is != id {
		err = errors.New("its content has another SHA-1")
	}
	if err != nil {
		return 0, nil, fmt.Errorf("the object %s: %w", id, err)
	}
	return kind, content, nil
}

func (g *gitImport) loose(blob string) (gitKind, []byte, error) {
	f, err := g.t.Store.Blob(blob)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	z, err := zlib.NewReader(bufio.NewReader(f))
	if err != nil {
		return 0, nil, err
	}
	in := bufio.NewReaderSize(z, 512)
	head, err := in.ReadSlice(0)
	if err != nil || len(head) > 32 {
		return 0, nil, errors.New("it has no header")
	}
	word, number, _ := strings.Cut(string(head[:len(head)-1]), " ")
	kind, err := kindNamed(word)
	if err != nil {
		return 0, nil, err
	}
	size, err := strconv.ParseInt(number, 10, 64)
	if err != nil || size < 0 {
		return 0, nil, errors.New("it has no size")
	}
	content, err := g.inflated(in, size)
	return kind, content, err
}

// inflated reads size bytes, and their end, within all bounds.
func (g *gitImport) inflated(in io.Reader, size int64) ([]byte, error) {
	if err := g.take(size); err != nil {
		return nil, err
	}
	// Room grows with what comes, not with what is said.
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(in, size+1))
	switch {
	case err != nil:
		return nil, err
	case n != size:
		return nil, fmt.Errorf("it says that it has %d bytes, and has others", size)
	}
	return b.Bytes(), nil
}

// take counts bytes that are about to be made.
func (g *gitImport) take(size int64) error {
	if size < 0 || size > maxGitObject {
		return fmt.Errorf("it has %d bytes; %d are possible", size, maxGitObject)
	}
	if g.left -= size; g.left < 0 {
		return fmt.Errorf("the guest's objects have more than %d bytes", int64(maxGitBytes))
	}
	return nil
}

// gitRefer is one object that another names, and of what type that is to be.
type gitRefer struct {
	id   gitID
	kind gitKind
}

// gitRefers takes an object apart, and refuses what git would not have made.
func gitRefers(kind gitKind, content []byte) ([]gitRefer, error) {
	switch kind {
	case gitTree:
		return treeRefers(content)
	case gitCommit:
		return headRefers(content, "tree", "author", "committer")
	case gitTag:
		return headRefers(content, "object", "type", "tag")
	}
	return nil, nil
}

func treeRefers(b []byte) (all []gitRefer, err error) {
	last := ""
	for len(b) > 0 {
		head, rest, ok := bytes.Cut(b, []byte{0})
		mode, name, ok2 := strings.Cut(string(head), " ")
		if !ok || !ok2 || len(rest) < len(gitID{}) {
			return nil, errors.New("it is cut short")
		}
		id := gitID(rest[:len(gitID{})])
		b = rest[len(gitID{}):]
		kind := gitBlob
		switch mode {
		case "40000":
			kind = gitTree
		case "100644", "100755", "100664", "120000":
		case "160000": // a commit of another repository
			kind = 0
		default:
			return nil, fmt.Errorf("it has an entry of mode %.10q", mode)
		}
		fold := rules.Fold(name)
		switch {
		case name == "", name == ".", name == "..", strings.ContainsAny(name, "/\\"), len(name) > maxPart, fold == ".git", fold == "git~1":
			return nil, fmt.Errorf("it has an entry of the name %.100q", name)
		case mode == "120000" && strings.HasPrefix(fold, ".gitm"): // .gitmodules as a link leads git elsewhere
			return nil, fmt.Errorf("its entry %.100q is a link", name)
		}
		order := name // git sorts folders as if their names ended in '/'
		if kind == gitTree {
			order += "/"
		}
		if order <= last {
			return nil, fmt.Errorf("its entry %.100q is out of order", name)
		}
		last = order
		if kind != 0 {
			all = append(all, gitRefer{id, kind})
		}
	}
	return all, nil
}

// headRefers reads the lines before the message of a commit or a tag, of which
// some must be there, in this order.
func headRefers(b []byte, needed ...string) (all []gitRefer, err error) {
	head, _, _ := bytes.Cut(b, []byte("\n\n"))
	if bytes.IndexByte(head, 0) >= 0 {
		return nil, errors.New("it has a NUL")
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(head), "\n"), "\n") {
		word, value, _ := strings.Cut(line, " ")
		if len(needed) > 0 && word == needed[0] {
			needed = needed[1:]
		} else if word != "parent" || len(needed) == 0 || needed[0] != "author" {
			if len(needed) > 0 {
				return nil, fmt.Errorf("it has no line %q", needed[0])
			}
			break // encoding, signatures, and what else there may be
		}
		var r gitRefer
		switch word {
		case "tree":
			r.kind = gitTree
		case "parent":
			r.kind = gitCommit
		case "object":
		case "type":
			if all[0].kind, err = kindNamed(value); err != nil {
				return nil, err
			}
			continue
		default:
			continue
		}
		if r.id, err = parseID(value); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	if len(needed) > 0 {
		return nil, fmt.Errorf("it has no line %q", needed[0])
	}
	return all, nil
}
