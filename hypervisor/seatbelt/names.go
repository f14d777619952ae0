package seatbelt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Names are the rules of names within a share, as guest/share/rules has them:
// patterns as in .gitignore, of which the last one that matches a name counts,
// and counts for all below it.
type Names struct {
	// Hide are names that a guest cannot read. It can see that they are there,
	// since Seatbelt takes nothing out of a folder's list.
	Hide []string
	// Protect are names that a guest cannot change.
	Protect []string
	// NoDelete says that nothing in the share may be removed or cut short.
	NoDelete bool
}

// maxNames bounds the patterns of all shares of a guest: see maxShares.
const maxNames = 2000

// A rule of Seatbelt is about the path that a file has, and nobody asks us when
// a folder gets another name. So a name that a pattern of several parts is about
// must be safe from being made elsewhere and moved into its place:
//
//   - what lies above such a name ("ancestors", .git of .git/hooks) can neither be
//     made nor removed nor renamed in a writable share
//   - where "**" stands between the parts, all below the parts before it stays as
//     it is
//   - a pattern that takes something back counts only if it is one part: what
//     lies in node_modules could have been made for another place. So do those of
//     Protect only where they take back that very pattern.
//
// Whoever is in doubt denies: a guest here sees and changes less than one whose
// shares have a server, never more.

// pattern is one of Hide or Protect.
type pattern struct {
	parts          []string // "**" stands for any number of them
	rooted, except bool
}

func parsePattern(s string) (p pattern, err error) {
	rest, except := strings.CutPrefix(s, "!")
	rest, rooted := strings.CutPrefix(strings.TrimSuffix(rest, "/"), "/")
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		if except {
			return pattern{except: true}, nil // nothing is taken back
		}
		return p, fmt.Errorf("the name %.80q cannot be told to Seatbelt, which here gets ASCII without quotation marks (leave it out, or share with :plain)", s)
	}
	p = pattern{rooted: rooted, except: except}
	for part := range strings.SplitSeq(rest, "/") {
		if part != "**" || len(p.parts) > 0 || rooted {
			p.parts = append(p.parts, part)
		}
	}
	if n := len(p.parts); n == 0 || p.parts[n-1] == "**" || slices.Contains(p.parts, "") {
		return p, fmt.Errorf("the name %.80q is not one", s)
	}
	return p, nil
}

// kept leaves out what takes something back in a way that cannot be had, and
// what is taken back as a whole.
func kept(patterns []string, protect bool) (all []pattern, err error) {
	for _, s := range patterns {
		p, err := parsePattern(s)
		if err != nil {
			return nil, err
		}
		if !p.except {
			all = append(all, p)
			continue
		}
		if len(p.parts) != 1 {
			continue
		}
		all = slices.DeleteFunc(all, func(q pattern) bool {
			return !q.except && q.rooted == p.rooted && slices.Equal(q.parts, p.parts)
		})
		if !protect && !strings.Contains(p.parts[0], "[") {
			all = append(all, p)
		}
	}
	return all, nil
}

// names writes the rules of names within a share, after those of the share.
func (w *writer) names(path string, readOnly bool, n Names) error {
	hide, err := kept(n.Hide, false)
	if err != nil {
		return err
	}
	protect, err := kept(n.Protect, true)
	if err != nil {
		return err
	}
	if len(hide)+len(protect) > 0 && strings.ContainsAny(path, "\"\\") {
		return errors.New("names in it cannot be told to Seatbelt, since its own has a quotation mark or a backslash (rename the folder, or share it with :plain)")
	}
	const see = "file-read* process-exec* file-map-executable"
	all := see + " file-write*"
	root := "^" + escape(path) + "/"
	var denied []string
	for len(hide) > 0 {
		except, run := hide[0].except, []string(nil)
		for ; len(hide) > 0 && hide[0].except == except; hide = hide[1:] {
			p := hide[0]
			if except {
				run = append(run, at(root, p, p.parts, exact)+"$")
				continue
			}
			run = append(run, at(root, p, p.parts, folded)+"(/.*)?$")
			denied = append(denied, at(root, p, p.parts, folded)+"/.*$")
		}
		switch {
		case !except:
			w.regexes("deny", all, run)
		case readOnly:
			w.regexes("allow", see, run)
		default:
			w.regexes("allow", all, run)
		}
	}
	// What lies below a hidden folder stays hidden, whatever its own name is.
	w.regexes("deny", all, denied)
	if readOnly {
		return nil
	}
	hide, _ = kept(n.Hide, false)
	hide = slices.DeleteFunc(hide, func(p pattern) bool { return p.except })
	var whole, above []string
	for _, p := range protect {
		whole = append(whole, at(root, p, p.parts, folded)+"(/.*)?$")
	}
	for _, p := range slices.Concat(hide, protect) {
		for i := 1; i < len(p.parts); i++ {
			if p.parts[i] == "**" {
				whole = append(whole, at(root, p, p.parts[:i], folded)+"/.*$")
				above = append(above, at(root, p, p.parts[:i], folded)+"$")
				break
			}
			above = append(above, at(root, p, p.parts[:i], folded)+"$")
		}
	}
	w.regexes("deny", "file-write*", unique(whole))
	w.regexes("deny", "file-write-unlink file-write-create", unique(above))
	return nil
}

func unique(all []string) []string {
	slices.Sort(all)
	return slices.Compact(all)
}

// at is an expression for the first parts of a pattern below root.
func at(root string, p pattern, parts []string, name func(string) string) string {
	var b strings.Builder
	b.WriteString(root)
	if !p.rooted {
		b.WriteString("(.*/)?")
	}
	for i, part := range parts {
		switch {
		case part == "**":
			b.WriteString("(.*/)?")
		case i+1 < len(parts):
			b.WriteString(name(part) + "/")
		default:
			b.WriteString(name(part))
		}
	}
	return b.String()
}

// other is any character beyond ASCII, or the bytes of one.
const other = `[^ -~]`

// becomes are letters that characters beyond ASCII, or pairs of them in one
// character, fold to: the Kelvin sign, the long s, the sharp s, and ligatures
// (Unicode's CaseFolding.txt, which APFS follows).
const becomes = "fiklst"

// folded matches a name part of a pattern as file systems that fold names find
// it, and more: ".GIT", ".g\u200cit" (HFS+ passes over that character) and
// ".g\ufb01t" where ".gift" is meant. A dot or space at its end is passed over, too.
func folded(part string) string {
	var b strings.Builder
	b.WriteString(other + "*")
	for i := 0; i < len(part); {
		j := i
		for j < len(part) && strings.IndexByte(becomes, lower(part[j])) >= 0 {
			j++
		}
		if j == i {
			n := letter(&b, part[i:], true)
			b.WriteString(other + "*")
			i += n
			continue
		}
		b.WriteString("(")
		for ; i < j; i++ {
			letter(&b, part[i:], true)
			b.WriteString(other + "*")
		}
		b.WriteString("|[^/]*" + other + "[^/]*)")
	}
	return b.String() + "[ .]*"
}

// exact matches a name in ASCII, in any letters' case.
func exact(part string) string {
	var b strings.Builder
	for i := 0; i < len(part); {
		i += letter(&b, part[i:], false)
	}
	return b.String()
}

// letter writes what matches the first character of s, and returns how long
// that was. A class of characters is any one where more may match.
func letter(b *strings.Builder, s string, wide bool) int {
	switch c := s[0]; {
	case c == '*':
		b.WriteString("[^/]*")
	case c == '?':
		b.WriteString("[^/]")
		if wide {
			b.WriteString(other + "*") // of which a character may be several bytes
		}
	case c == '[':
		b.WriteString("[^/]" + other + "*")
		if end := strings.IndexByte(s[1:], ']'); end >= 0 {
			return end + 2
		}
	case lower(c) >= 'a' && lower(c) <= 'z':
		b.WriteString("[" + string(lower(c)) + string(lower(c)-'a'+'A') + "]")
	default:
		b.WriteString(escape(s[:1]))
	}
	return 1
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c - 'A' + 'a'
	}
	return c
}

// escape writes s for a regular expression.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(`.*+?()[]{}|^$\`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// regexes writes a rule about what any of these match, none about nothing.
func (w *writer) regexes(action, operations string, all []string) {
	if len(all) == 0 {
		return
	}
	filters := make([]string, 0, len(all))
	for _, r := range all {
		filters = append(filters, `(regex #"`+r+`")`)
	}
	w.rule(action, operations, filters...)
}
