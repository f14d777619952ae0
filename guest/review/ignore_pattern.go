package review

import (
	"bytes"
	"strings"
)

// The patterns of a .gitignore file, as gitignore(5) has them. There is no
// library for it that agrees with git: the ones that were looked at take what
// brings a folder back ("!docs") to bring back all that is in it. The test
// asks git itself.
//
// Matching never takes more than len(pattern)*len(name) steps, since a project's
// own file may have been a guest's idea.

// ignorePattern is one line.
type ignorePattern struct {
	// parts are what is between slashes; "**" is any number of folders.
	parts []string
	// base: one part, which is compared with the last part of the name alone.
	base            bool
	except, dirOnly bool
}

const (
	maxIgnoreLine = 4096
	maxIgnoreList = 20_000 // patterns of one file
)

func parseIgnore(file []byte) (list []ignorePattern) {
	file = bytes.TrimPrefix(file, []byte("\xef\xbb\xbf"))
	for line := range bytes.SplitSeq(file, []byte("\n")) {
		if len(list) >= maxIgnoreList {
			break
		}
		if len(line) > maxIgnoreLine || len(line) > 0 && line[0] == '#' {
			continue
		}
		if p, ok := parseIgnoreLine(string(line)); ok {
			list = append(list, p)
		}
	}
	return list
}

func parseIgnoreLine(s string) (p ignorePattern, ok bool) {
	s = trimSpaces(strings.TrimSuffix(s, "\r"))
	s, p.except = strings.CutPrefix(s, "!")
	s, p.dirOnly = strings.CutSuffix(s, "/")
	if s == "" {
		return p, false
	}
	p.base = !strings.Contains(s, "/")
	p.parts = strings.Split(strings.TrimPrefix(s, "/"), "/")
	return p, true
}

// trimSpaces cuts spaces at the end, up to one that is escaped.
func trimSpaces(s string) string {
	end := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
			end = min(i+1, len(s))
		case s[i] != ' ':
			end = i + 1
		}
	}
	return s[:end]
}

// match says whether the pattern names exactly this entry. parts are its name
// relative to the folder that has the file.
func (p *ignorePattern) match(parts []string, dir bool) bool {
	switch {
	case p.dirOnly && !dir:
		return false
	case p.base:
		return glob(p.parts[0], parts[len(parts)-1])
	}
	pi, ni := 0, 0
	backP, backN := -1, 0
	for ni < len(parts) {
		switch {
		case pi < len(p.parts) && p.parts[pi] == "**":
			if pi == len(p.parts)-1 {
				return true // at least one part is left
			}
			pi++
			backP, backN = pi, ni
		case pi < len(p.parts) && glob(p.parts[pi], parts[ni]):
			pi++
			ni++
		case backP >= 0:
			backN++
			pi, ni = backP, backN
		default:
			return false
		}
	}
	return pi == len(p.parts)
}

// glob compares one part, byte by byte as git does.
func glob(pattern, name string) bool {
	pi, ni := 0, 0
	backP, backN := -1, 0
	for ni < len(name) {
		if pi < len(pattern) {
			if pattern[pi] == '*' {
				pi++
				backP, backN = pi, ni
				continue
			}
			if n := globByte(pattern[pi:], name[ni]); n > 0 {
				pi += n
				ni++
				continue
			}
		}
		if backP < 0 {
			return false
		}
		backN++
		pi, ni = backP, backN
	}
	return strings.Trim(pattern[pi:], "*") == ""
}

// globByte compares one byte with the start of a pattern, and says how many
// bytes of it that took; 0: it is another.
func globByte(pattern string, c byte) int {
	switch pattern[0] {
	case '?':
		return 1
	case '\\':
		if len(pattern) > 1 && pattern[1] == c {
			return 2
		}
		return 0
	case '[':
		return globSet(pattern, c)
	}
	if pattern[0] == c {
		return 1
	}
	return 0
}

// globSet compares with "[...]". One that does not end matches nothing.
func globSet(pattern string, c byte) int {
	i, in := 1, false
	not := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if not {
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			if in == not {
				return 0
			}
			return i + 1
		}
		if name, rest, ok := strings.Cut(strings.TrimPrefix(pattern[i:], "[:"), ":]"); ok && strings.HasPrefix(pattern[i:], "[:") && !strings.Contains(name, "]") {
			is, known := globClass(name, c)
			if !known {
				return 0
			}
			in = in || is
			i = len(pattern) - len(rest)
			continue
		}
		low, n := globLiteral(pattern[i:])
		i += n
		high := low
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			high, n = globLiteral(pattern[i+1:])
			i += 1 + n
		}
		in = in || low <= c && c <= high
	}
	return 0
}

// globLiteral is the next byte of a set, which may be escaped.
func globLiteral(s string) (c byte, n int) {
	if s[0] == '\\' && len(s) > 1 {
		return s[1], 2
	}
	return s[0], 1
}

func globClass(name string, c byte) (is, known bool) {
	lower, upper, digit := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9'
	switch name {
	case "alnum":
		return lower || upper || digit, true
	case "alpha":
		return lower || upper, true
	case "blank":
		return c == ' ' || c == '\t', true
	case "cntrl":
		return c < ' ' || c == 0x7f, true
	case "digit":
		return digit, true
	case "graph":
		return c > ' ' && c < 0x7f, true
	case "lower":
		return lower, true
	case "print":
		return c >= ' ' && c < 0x7f, true
	case "punct":
		return c > ' ' && c < 0x7f && !lower && !upper && !digit, true
	case "space":
		return c == ' ' || c >= '\t' && c <= '\r', true
	case "upper":
		return upper, true
	case "xdigit":
		return digit || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F', true
	}
	return false, false
}
