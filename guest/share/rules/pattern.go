package rules

import (
	"fmt"
	"path"
	"strings"
)

// pattern is one compiled entry: its parts, of which "**" stands for any number.
type pattern struct {
	parts  []part
	rooted bool
	except bool // begins with '!'
}

// part is one folded component of a pattern. The usual globs, "*.pem" and
// ".env.*", are compared without the general matcher.
type part struct {
	text string
	kind partKind
}

type partKind uint8

const (
	literal  partKind = iota
	anyDepth          // "**"
	prefix            // text and anything
	suffix            // anything and text
	glob
)

const globChars = `*?[`

func parse(s string) (pattern, error) {
	bad := func(why string) (pattern, error) { return pattern{}, fmt.Errorf("the pattern %.64q %s", s, why) }
	var p pattern
	rest := s
	if strings.HasPrefix(rest, "!") {
		p.except, rest = true, rest[1:]
	}
	rest = strings.TrimSuffix(rest, "/")
	switch {
	case len(s) > maxPattern:
		return bad(fmt.Sprintf("has more than %d bytes", maxPattern))
	case rest == "":
		return bad("names nothing")
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("has a control character")
	case strings.Contains(s, `\`):
		return bad(`has a backslash (parts are separated by "/", and there are no escapes)`)
	}
	p.rooted = strings.HasPrefix(rest, "/")
	for text := range strings.SplitSeq(strings.TrimPrefix(rest, "/"), "/") {
		switch {
		case text == "" || text == "." || text == "..":
			return bad("has an empty part, or one of dots")
		case text == "**":
			if len(p.parts) > 0 || p.rooted { // at the start it is what every pattern means
				p.parts = append(p.parts, part{kind: anyDepth})
			}
			continue
		case strings.Trim(text, "*") == "":
			return bad(`has a part that is any name (name the folder, and all below it is meant)`)
		case strings.ContainsRune(text, ':') || strings.TrimRight(text, ". ") != text:
			return bad("has a part with a colon, or with a dot or a space at its end, which is not told apart from one without")
		}
		q, err := parsePart(Fold(text))
		if err != nil {
			return bad("is not well formed")
		}
		p.parts = append(p.parts, q)
	}
	switch {
	case len(p.parts) == 0 || p.parts[len(p.parts)-1].kind == anyDepth:
		return bad(`ends in "**" (name the folder, and all below it is meant)`)
	case len(p.parts) > maxParts:
		return bad(fmt.Sprintf("has more than %d parts", maxParts))
	}
	return p, nil
}

func parsePart(text string) (part, error) {
	if _, err := path.Match(text, ""); err != nil {
		return part{}, err
	}
	switch i := strings.IndexAny(text, globChars); {
	case i < 0:
		return part{text, literal}, nil
	case text[i] == '*' && i == len(text)-1:
		return part{text[:i], prefix}, nil
	case text[0] == '*' && !strings.ContainsAny(text[1:], globChars):
		return part{text[1:], suffix}, nil
	}
	return part{text, glob}, nil
}

// match compares a part with a folded name.
func (q *part) match(name string) bool {
	switch q.kind {
	case literal:
		return name == q.text
	case prefix:
		return strings.HasPrefix(name, q.text)
	case suffix:
		return strings.HasSuffix(name, q.text)
	}
	ok, _ := path.Match(q.text, name)
	return ok
}

// matcher holds one list.
type matcher struct {
	list     []entry
	patterns []pattern
	// any finds the patterns at any depth by their first part, globs are those
	// whose first part is no literal; root finds those that begin at the root.
	any   map[string][]int
	globs []int
	root  map[string][]int
	roots []int // rooted ones whose first part is no literal
}

// entry is a pattern with its origin and a sentence about it.
type entry struct {
	List
	reason string
}

func (m *matcher) add(list []entry) error {
	for _, l := range list {
		p, err := parse(l.Pattern)
		if err != nil {
			return fmt.Errorf("%s: %w", l.Origin, err)
		}
		i := len(m.patterns)
		m.list, m.patterns = append(m.list, l), append(m.patterns, p)
		by, others := &m.any, &m.globs
		if p.rooted {
			by, others = &m.root, &m.roots
		}
		if p.parts[0].kind != literal {
			*others = append(*others, i)
			continue
		}
		if *by == nil {
			*by = map[string][]int{}
		}
		(*by)[p.parts[0].text] = append((*by)[p.parts[0].text], i)
	}
	return nil
}

// state is a pattern of which the parts before at have matched.
type state struct{ pattern, at int }

// walk goes down a path, part by part, in a matcher.
type walk struct {
	m *matcher
	// hit is the pattern that names the path or something above it, or -1.
	hit int
	// ancestor says that the path ends where a pattern's own words go on, within
	// that it ends where they go on at any depth ("**").
	ancestor     bool
	within       bool
	active, next []state
	last         int // the last pattern that names this part
}

// judge walks down the path: whatever a part on the way is, all below it is.
func (w *walk) judge(path string, depth int) {
	m := w.m
	w.hit = -1
	if len(m.patterns) == 0 {
		return
	}
	var low [maxFold]byte
	for ; path != ""; depth++ {
		part, rest, _ := strings.Cut(path, "/")
		path = rest
		name := part
		if !plainName(part) {
			if n, ascii := foldASCII(low[:], part); ascii {
				name = string(low[:n])
			} else {
				name = Fold(part)
			}
		}
		w.last, w.ancestor, w.within, w.next = -1, false, false, w.next[:0]
		tilde := strings.IndexByte(name, '~') > 0
		for _, s := range w.active {
			w.step(s, name, tilde)
		}
		if depth == 0 {
			w.begin(m.root[name], name)
			w.steps(m.roots, name, tilde)
			if tilde {
				w.shorts(m.root, name)
			}
		}
		w.begin(m.any[name], name)
		w.steps(m.globs, name, tilde)
		if tilde {
			w.shorts(m.any, name)
		}
		if w.last >= 0 && !m.patterns[w.last].except {
			w.hit = w.last
			return
		}
		w.active, w.next = w.next, w.active
	}
}

// begin takes the first part of patterns as matched.
func (w *walk) begin(list []int, name string) {
	for _, i := range list {
		w.matched(state{i, 0})
	}
}

func (w *walk) steps(list []int, name string, tilde bool) {
	for _, i := range list {
		w.step(state{i, 0}, name, tilde)
	}
}

// shorts begins the patterns of which name may be the short form.
func (w *walk) shorts(by map[string][]int, name string) {
	for full, list := range by {
		if full == name || !short(name, full) {
			continue
		}
		for _, i := range list {
			if !w.m.patterns[i].except { // what may be something else is not taken back
				w.matched(state{i, 0})
			}
		}
	}
}

func (w *walk) step(s state, name string, tilde bool) {
	p := &w.m.patterns[s.pattern]
	if p.parts[s.at].kind == anyDepth {
		w.keep(s) // it takes this part, too
		w.within = w.within || !p.except
		for p.parts[s.at].kind == anyDepth {
			s.at++
		}
	}
	q := &p.parts[s.at]
	if q.match(name) || tilde && !p.except && q.kind == literal && short(name, q.text) {
		w.matched(s)
	}
}

// matched goes past the part at which s stands.
func (w *walk) matched(s state) {
	p := &w.m.patterns[s.pattern]
	if s.at++; s.at == len(p.parts) {
		w.last = max(w.last, s.pattern)
		return
	}
	w.ancestor = w.ancestor || !p.except
	w.keep(s)
}

func (w *walk) keep(s state) {
	for _, t := range w.next {
		if t == s {
			return
		}
	}
	w.next = append(w.next, s)
}
