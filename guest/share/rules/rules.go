package rules

import (
	"errors"
	"fmt"
	"slices"
)

// Mode is what a guest may do to a share.
type Mode uint8

// The modes. The zero value is the one that leaves the folder alone.
const (
	// Review: the host's folder is read only; the guest has a layer over it.
	Review Mode = iota
	ReadOnly
	ReadWrite
	// NoDelete: create and edit; nothing is removed, replaced or cut short.
	NoDelete
)

// Writes says whether the guest changes the host's folder itself.
func (m Mode) Writes() bool { return m == NoDelete || m == ReadWrite }

func (m Mode) String() string {
	switch m {
	case Review:
		return "review"
	case ReadOnly:
		return "ro"
	case NoDelete:
		return "rw-nodelete"
	case ReadWrite:
		return "rw"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// List is one pattern and where it stands: "policy.yaml:7", "--protect".
type List struct{ Pattern, Origin string }

// Options are the rules of one share, beside the built-in lists.
type Options struct {
	Mode Mode
	// Plain: neither the built-in lists nor the others count.
	Plain bool
	// Hide and Protect come after the built-in lists, so that "!name" in them
	// takes back what those say.
	Hide, Protect []List
}

// Bounds of a share's own lists.
const (
	MaxPatterns = 4096
	maxPattern  = 1024 // bytes
	maxParts    = 32
)

// Set is a compiled set of rules. It is not changed afterwards. A nil Set hides
// everything.
type Set struct {
	mode          Mode
	plain         bool
	hide, protect matcher
}

// Compile checks and compiles rules. A pattern that cannot be understood is an
// error: nothing may be shared under rules that are not known.
func Compile(o Options) (*Set, error) {
	if o.Mode > NoDelete {
		return nil, fmt.Errorf("there is no %s of a share", o.Mode)
	}
	if len(o.Hide) > MaxPatterns || len(o.Protect) > MaxPatterns {
		return nil, fmt.Errorf("%d patterns for a share; %d are possible", max(len(o.Hide), len(o.Protect)), MaxPatterns)
	}
	s := &Set{mode: o.Mode, plain: o.Plain}
	err := errors.Join(
		s.hide.add(slices.Concat(builtIn(hidden, hiddenReason), own(o.Hide, hiddenReason))),
		s.protect.add(slices.Concat(builtIn(protected, protectedReason), own(o.Protect, protectedReason))))
	if err != nil {
		return nil, err
	}
	if o.Plain { // bad patterns are said all the same
		s.hide, s.protect = matcher{}, matcher{}
	}
	return s, nil
}

// Check says whether a pattern can be compiled.
func Check(pattern string) error {
	_, err := parse(pattern, false)
	return err
}

const (
	hiddenReason    = "the guest does not see it"
	protectedReason = "the guest cannot change it on the host"
)

func own(list []List, verb string) (out []entry) {
	for _, l := range list {
		out = append(out, entry{l, fmt.Sprintf("%s: %q (%s)", verb, l.Pattern, l.Origin)})
	}
	return out
}

// BuiltIn is the origin of the patterns that every share has.
const BuiltIn = "built in"

func builtIn(list []because, verb string) (out []entry) {
	for _, b := range list {
		out = append(out, entry{List{b.pattern, BuiltIn}, verb + ": " + b.why})
	}
	return out
}

// Mode returns the mode.
func (s *Set) Mode() Mode {
	if s == nil {
		return Review
	}
	return s.mode
}

// Plain says that the lists do not count.
func (s *Set) Plain() bool { return s != nil && s.plain }

// Verdict is what the rules say of one path.
type Verdict struct {
	// Hidden: the guest does not learn that it is there.
	Hidden bool
	// Protected: the guest does not change it on the host.
	Protected bool
	// Ancestor: a protected name may lie below it, so that it may be a folder
	// and nothing else, and keeps its name.
	Ancestor bool
	// Within: a protected name may lie at any depth below it, so that no link to
	// another folder may stand here.
	Within bool
	// Pattern and Origin are of the list's entry that decided, and Reason is a
	// sentence for people.
	Pattern, Origin, Reason string
}

// Judge judges a path below the root, its parts joined with '/', "" for the root
// itself. It need not exist.
func (s *Set) Judge(path string) Verdict {
	if s == nil {
		return Verdict{Hidden: true, Pattern: "*", Origin: "no rules", Reason: "the guest sees nothing: there are no rules"}
	}
	if len(s.hide.patterns) == 0 && len(s.protect.patterns) == 0 {
		return Verdict{}
	}
	w := walk{m: &s.hide}
	w.judge(path)
	if w.hit >= 0 {
		e := &s.hide.list[w.hit]
		return Verdict{Hidden: true, Pattern: e.Pattern, Origin: e.Origin, Reason: e.reason}
	}
	w = walk{m: &s.protect}
	w.judge(path)
	switch {
	case w.hit >= 0:
		e := &s.protect.list[w.hit]
		return Verdict{Protected: true, Pattern: e.Pattern, Origin: e.Origin, Reason: e.reason}
	case w.ancestor:
		return Verdict{Ancestor: true, Within: w.within, Reason: "it stays a folder of this name, since protected names may lie below it"}
	}
	return Verdict{Within: w.within}
}

// Same says whether the same rules hold for what lies below two folders, so that
// one may become the other by a rename: what is in it is not looked at then.
func (s *Set) Same(a, b string) bool {
	if s == nil {
		return false
	}
	for _, m := range []*matcher{&s.hide, &s.protect} {
		x, y := walk{m: m}, walk{m: m}
		x.judge(a)
		y.judge(b)
		if x.hit != y.hit || x.active().len() != y.active().len() {
			return false
		}
		for i := range x.active().len() {
			if !y.active().has(x.active().get(i)) {
				return false
			}
		}
	}
	return true
}
