package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Names are the images that a key may sign: names, beginnings of names with * after them, or * alone, which is
// every image. None of them is no image: a key that says nothing of them signs nothing.
type Names []string

const maxNames = 32 // of one key; with at most 33 bytes each they leave room for the key in maxKeyFile

var validPattern = regexp.MustCompile(`^([a-z0-9][a-z0-9-]{0,30})?\*$|^[a-z0-9][a-z0-9-]{0,30}$`)

func (n Names) check() error {
	if len(n) == 0 {
		return errors.New("which images it may sign is not said (--for NAME, --for 'BEGINNING*', or --for '*' for any image)")
	}
	if len(n) > maxNames {
		return fmt.Errorf("%d names of images, more than %d (--for 'BEGINNING*' says many at once)", len(n), maxNames)
	}
	for _, p := range n {
		if !validPattern.MatchString(p) {
			return fmt.Errorf("%.40q is no name of an image, and no beginning of one with * after it (as --for default, --for 'team-*' or --for '*')", p)
		}
	}
	return nil
}

// Has says whether an image of that name may be signed.
func (n Names) Has(name string) bool {
	return slices.ContainsFunc(n, func(p string) bool {
		beginning, many := strings.CutSuffix(p, "*")
		return p == name || many && strings.HasPrefix(name, beginning)
	})
}

// String writes them as --for takes them, for people and for a shell.
func (n Names) String() string {
	s := strings.Join(n, ",")
	if strings.Contains(s, "*") {
		return "'" + s + "'"
	}
	return s
}

// namesLine begins a trusted key's file, before the PEM block. Only Trust writes it: what the file of a key from elsewhere
// has in this place is not taken over.
const namesLine = "carrel-may-sign:"

func (n Names) line() []byte { return []byte(namesLine + " " + strings.Join(n, " ") + "\n") }

// namesOf reads the line. A file without it is that of a key that may sign nothing.
func namesOf(file []byte) (Names, error) {
	first, _, _ := bytes.Cut(file, []byte("\n"))
	list, ok := strings.CutPrefix(string(first), namesLine)
	if !ok {
		return nil, nil
	}
	n := Names(strings.Fields(list))
	return n, n.check()
}

// mayNot is why a signature of this key does not count for an image of that name.
func (k Key) mayNot(name string) error {
	only := "it is trusted for none"
	if len(k.For) > 0 {
		only = "it is trusted for " + k.For.String()
	}
	cure := "ask for one that is signed by another key"
	if k.Path != "" {
		cure = fmt.Sprintf("carrel image trust %s --for %s, if you want it to decide what %s is", shellPath(k.Path), append(slices.Clone(k.For), name), name)
	}
	return fmt.Errorf("%w: key %s (%s) may not sign image %s: %s (%s)", ErrUntrusted, k.Name, k.ID(), name, only, cure)
}

var plainPath = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=-]+$`)

func shellPath(s string) string {
	if plainPath.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
