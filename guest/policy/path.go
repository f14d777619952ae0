package policy

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"
)

// normal brings a request's path to the form that patterns are matched with
// (RFC 3986 section 6.2.2): %XX of an unreserved character is that character,
// hex digits are upper case, and what has to be escaped is, a "*" too, since it
// is not a character of its own in a pattern. Case counts. It refuses what cannot
// be one path of a request: control characters and backslashes in any spelling;
// spaces, bytes beyond ASCII, "?" and "#" that are not escaped.
func normal(p string) (string, error) { return normalise(p, "\"<>^`{|}[]*") }

// normalise escapes the characters that are given.
func normalise(p, escape string) (string, error) {
	switch {
	case p == "" || p[0] != '/':
		return "", errors.New(`it does not begin with "/"`)
	case len(p) > maxPath:
		return "", fmt.Errorf("it is longer than %d bytes", maxPath)
	}
	var b strings.Builder
	b.Grow(len(p))
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '%' {
			if i+2 >= len(p) || !ishex(p[i+1]) || !ishex(p[i+2]) {
				return "", errors.New("it has a percent sign without two hex digits")
			}
			c = unhex(p[i+1])<<4 | unhex(p[i+2])
			i += 2
			switch {
			case c < 0x20 || c == 0x7f:
				return "", errors.New("it has a control character, escaped")
			case c == '\\':
				return "", errors.New("it has a backslash, escaped")
			case unreserved(c):
				b.WriteByte(c)
			default:
				fmt.Fprintf(&b, "%%%02X", c)
			}
			continue
		}
		switch {
		case c <= 0x20 || c >= 0x7f:
			return "", errors.New("it has a space, a control character or a byte beyond ASCII that is not escaped")
		case c == '\\':
			return "", errors.New("it has a backslash")
		case c == '?' || c == '#':
			return "", fmt.Errorf("%q is not part of a path", string(rune(c)))
		case strings.IndexByte(escape, c) >= 0:
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

// forms returns the ways in which a server may read a normal path: as it is,
// with %2F as a slash, and either without ";parameters". It refuses paths that
// mean another one: with "." or ".." or empty segments (a "/" at the end is
// good), or escaped twice, or with escapes that are not UTF-8 (%C0%AE is a "."
// to a careless reader).
func forms(p string) ([]string, error) {
	for rest := p; ; {
		_, after, found := strings.Cut(rest, "%25")
		if !found {
			break
		}
		if len(after) >= 2 && ishex(after[0]) && ishex(after[1]) {
			return nil, errors.New("it is escaped twice")
		}
		rest = after
	}
	if raw, err := url.PathUnescape(p); err != nil || !utf8.ValidString(raw) {
		return nil, errors.New("its escapes are not UTF-8")
	}
	all := []string{p}
	add := func(q string) {
		if q != all[len(all)-1] {
			all = append(all, q)
		}
	}
	add(strings.ReplaceAll(p, "%2F", "/"))
	for _, q := range all[:len(all):len(all)] {
		add(withoutParameters(q))
		add(withoutParameters(strings.ReplaceAll(q, "%3B", ";")))
	}
	for _, q := range all {
		segments := strings.Split(q[1:], "/")
		for i, s := range segments {
			switch {
			case s == "." || s == "..":
				return nil, errors.New(`it has a segment "." or ".."`)
			case s == "" && i < len(segments)-1:
				return nil, errors.New("it has two slashes in a row")
			}
		}
	}
	return all, nil
}

// withoutParameters cuts each segment at its ";" (RFC 3986 section 3.3).
func withoutParameters(p string) string {
	if !strings.Contains(p, ";") {
		return p
	}
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

// compilePath makes the matcher of a rule's path: "*" is any run of characters
// but "/", "**" any run, %2A a "*", and %2F what it is in forms. Case counts unless
// it is folded. The matcher's time is linear in the path's length.
func compilePath(p string, fold bool) (*regexp.Regexp, error) {
	no := func(why string) (*regexp.Regexp, error) {
		return nil, fmt.Errorf("path %q is refused: %s", clip(p), why)
	}
	if len(p) > maxPattern {
		return no(fmt.Sprintf("it is longer than %d bytes", maxPattern))
	}
	if strings.Contains(p, "***") {
		return no(`it has more than two "*" in a row`)
	}
	n, err := normalise(p, "\"<>^`{|}[]")
	if err != nil {
		return no(err.Error())
	}
	if _, err := forms(n); err != nil {
		return no(err.Error())
	}
	var re strings.Builder
	if fold {
		re.WriteString(`(?i)`)
	}
	re.WriteString(`\A`)
	for i, run := range strings.Split(n, "**") {
		if i > 0 {
			re.WriteString(`.*`)
		}
		for j, lit := range strings.Split(run, "*") {
			if j > 0 {
				re.WriteString(`[^/]*`)
			}
			re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(lit), "%2F", "(?:%2F|/)"))
		}
	}
	re.WriteString(`\z`)
	c, err := regexp.Compile(re.String())
	if err != nil {
		return no(err.Error())
	}
	return c, nil
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func ishex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
