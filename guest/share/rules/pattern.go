package rules

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// pattern is one compiled entry: its parts, of which "**" stands for any number.
type pattern struct {
	parts  []part
	rooted bool
	except bool // begins with '!'
}

// part is one folded component of a pattern. The usual globs, "*.pem" and
// "key-*.json", are compared without the general matcher.
type part struct {
	text string
	tail string // of an affix
	kind partKind
}

type partKind uint8

const (
	literal  partKind = iota
	anyDepth          // "**"
	affix             // text, anything, and tail
	glob
)

const globChars = `*?[`

// parse compiles a pattern. Those of the built-in lists may also end in a part
// that is any name, which in others is more likely a slip: it hides a folder's
// contents, but not the folder.
func parse(s string, builtIn bool) (pattern, error) {
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
		case strings.Trim(text, "*") == "" && !builtIn:
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
	i := strings.IndexAny(text, globChars)
	switch {
	case i < 0:
		return part{text: text, kind: literal}, nil
	case text[i] == '*' && !strings.ContainsAny(text[i+1:], globChars):
		return part{text: text[:i], tail: text[i+1:], kind: affix}, nil
	}
	return part{text: text, kind: glob}, nil
}

// extension is the end that every name matched by the part has, from its last
// dot on; "" if there is no such end.
func (q *part) extension() string {
	if q.kind == affix && q.text == "" && strings.LastIndexByte(q.tail, '.') == 0 {
		return q.tail
	}
	return ""
}

// match compares a part with a folded name.
func (q *part) match(name string) bool {
	switch q.kind {
	case literal:
		return name == q.text
	case affix:
		return len(name) >= len(q.text)+len(q.tail) && strings.HasPrefix(name, q.text) && strings.HasSuffix(name, q.tail)
	}
	ok, _ := path.Match(q.text, name)
	return ok
}

// matcher holds one list.
type matcher struct {
	list     []entry
	patterns []pattern
	// at[0] finds the patterns that begin at any depth, at[1] those that begin at
	// the root.
	at [2]index
}

// index finds patterns by their first part.
type index struct {
	names map[string][]uint16 // a literal
	ends  map[string][]uint16 // any name with an extension
	globs []uint16
}

func (x *index) add(i uint16, first *part) {
	put := func(by *map[string][]uint16, key string) {
		if *by == nil {
			*by = map[string][]uint16{}
		}
		(*by)[key] = append((*by)[key], i)
	}
	switch end := first.extension(); {
	case first.kind == literal:
		put(&x.names, first.text)
	case end != "":
		put(&x.ends, end)
	default:
		x.globs = append(x.globs, i)
	}
}

// entry is a pattern with its origin and a sentence about it.
type entry struct {
	List
	reason string
}

func (m *matcher) add(list []entry) error {
	for _, l := range list {
		p, err := parse(l.Pattern, l.Origin == BuiltIn)
		if err != nil {
			return fmt.Errorf("%s: %w", l.Origin, err)
		}
		i := uint16(len(m.patterns)) // MaxPatterns and the built-in ones are far fewer
		m.list, m.patterns = append(m.list, l), append(m.patterns, p)
		from := 0
		if p.rooted {
			from = 1
		}
		m.at[from].add(i, &p.parts[0])
	}
	return nil
}

// state is a pattern of which the parts before at have matched.
type state struct {
	pattern uint16
	at      uint8
}

// states is a set. The first few are kept without the heap: more than the built-in
// patterns that begin with .git.
type states struct {
	few  [64]state
	n    int
	more []state
}

func (x *states) add(s state) {
	switch {
	case x.has(s):
	case x.n < len(x.few):
		x.few[x.n] = s
		x.n++
	default:
		x.more = append(x.more, s)
	}
}

func (x *states) has(s state) bool {
	return slices.Contains(x.few[:x.n], s) || slices.Contains(x.more, s)
}

func (x *states) len() int { return x.n + len(x.more) }

func (x *states) get(i int) state {
	if i < x.n {
		return x.few[i]
	}
	return x.more[i-x.n]
}

// walk goes down a path, part by part, in a matcher.
type walk struct {
	m *matcher
	// hit is the pattern that names the path or something above it, or -1.
	hit int
	// ancestor says that the path ends where a pattern's own words go on, within
	// that it ends where they go on at any depth ("**").
	ancestor bool
	within   bool
	sets     [2]states
	now      int // the set of states before the present part; the other is for those after it
	last     int // the last pattern that names this part
}

// active are the patterns that have begun when the walk is over.
func (w *walk) active() *states { return &w.sets[w.now] }

// judge walks down the path: whatever a part on the way is, all below it is.
func (w *walk) judge(path string) {
	w.hit = -1
	if len(w.m.patterns) == 0 {
		return
	}
	var low [maxFold]byte
	for depth := 0; path != ""; depth++ {
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
		w.part(name, depth)
		if w.last >= 0 && !w.m.patterns[w.last].except {
			w.hit = w.last
			return
		}
	}
}

// part takes one folded name.
func (w *walk) part(name string, depth int) {
	before, after := &w.sets[w.now], &w.sets[1-w.now]
	after.n, after.more = 0, after.more[:0]
	w.last, w.ancestor, w.within = -1, false, false
	tilde := strings.IndexByte(name, '~') > 0
	for i := range before.len() {
		w.step(before.get(i), name, tilde, after)
	}
	end := ""
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		end = name[i:]
	}
	for from := range w.m.at[:beginning(depth)] {
		x := &w.m.at[from]
		for _, i := range x.names[name] {
			w.matched(state{i, 0}, after)
		}
		if end != "" {
			for _, i := range x.ends[end] {
				w.matched(state{i, 0}, after)
			}
		}
		for _, i := range x.globs {
			w.step(state{i, 0}, name, tilde, after)
		}
		if tilde {
			w.shorts(x, name, after)
		}
	}
	w.now = 1 - w.now
}

// beginning is how many of a matcher's indexes count at a depth.
func beginning(depth int) int {
	if depth == 0 {
		return 2
	}
	return 1
}

// shorts begins the patterns of which name may be the short form.
func (w *walk) shorts(x *index, name string, after *states) {
	for full, list := range x.names {
		if full == name || !short(name, full) {
			continue
		}
		for _, i := range list {
			if !w.m.patterns[i].except { // what may be something else is not taken back
				w.matched(state{i, 0}, after)
			}
		}
	}
}

func (w *walk) step(s state, name string, tilde bool, after *states) {
	p := &w.m.patterns[s.pattern]
	if p.parts[s.at].kind == anyDepth {
		after.add(s) // it takes this part, too
		w.within = w.within || !p.except
		for p.parts[s.at].kind == anyDepth {
			s.at++
		}
	}
	q := &p.parts[s.at]
	if q.match(name) || tilde && !p.except && q.kind == literal && short(name, q.text) {
		w.matched(s, after)
	}
}

// matched goes past the part at which s stands.
func (w *walk) matched(s state, after *states) {
	p := &w.m.patterns[s.pattern]
	if s.at++; int(s.at) == len(p.parts) {
		w.last = max(w.last, int(s.pattern))
		return
	}
	w.ancestor = w.ancestor || !p.except
	after.add(s)
}
