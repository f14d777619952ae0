package rules

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// Fold returns what counts as the same name: file systems of other hosts find
// ".GIT", ".git ", ".g\u200cit" or ".git::$DATA" where ".git" is asked for.
//
//   - case is folded, and forms that compose characters differently are one
//     (APFS, NTFS; NFKC also takes full-width letters for plain ones)
//   - characters that HFS+ ignores are left out
//   - dots and spaces at the end (Windows), and what comes after a colon (a
//     stream of NTFS), are left out
//
// Bytes that are no UTF-8 stay as they are. Fold of a fold is the fold itself.
func Fold(name string) string {
	if plainName(name) {
		return name
	}
	var buf [maxFold]byte
	if n, ascii := foldASCII(buf[:], name); ascii {
		return string(buf[:n])
	}
	// One round may make way for another (a composed letter that folds into two
	// parts); each comes closer, and three are enough for all that there is.
	for range 4 {
		next := foldOnce(name)
		if next == name {
			break
		}
		name = next
	}
	return name
}

func foldOnce(name string) string {
	var b strings.Builder
	b.Grow(len(name))
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 || !ignorable(r) {
			b.WriteString(name[i : i+n])
		}
		i += n
	}
	// A Caser is made for each name, since it may not be shared.
	s := norm.NFKC.String(cases.Fold().String(norm.NFKC.String(b.String())))
	return s[:trimmed(s)]
}

// trimmed is the length of what is left of a name without a stream's name, and
// without dots and spaces at the end. Something is always left.
func trimmed[T string | []byte](s T) int {
	n := len(s)
	for i := 1; i < n; i++ {
		if s[i] == ':' {
			n = i
			break
		}
	}
	for i := n; i > 0; i-- {
		if s[i-1] != '.' && s[i-1] != ' ' {
			return i
		}
	}
	return n
}

// plainName says that a name is its own fold: the common case, without a copy.
func plainName(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' || c == ':' {
			return false
		}
	}
	return name == "" || name[len(name)-1] != '.' && name[len(name)-1] != ' '
}

// maxFold is the longest name that is folded in place: NAME_MAX.
const maxFold = 255

// foldASCII folds a name that has nothing but ASCII into buf.
func foldASCII(buf []byte, name string) (n int, ascii bool) {
	if len(name) > len(buf) {
		return 0, false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c >= utf8.RuneSelf:
			return 0, false
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	return trimmed(buf[:len(name)]), true
}

// ignorable are the code points that file systems leave out when they compare
// names: HFS+ (Apple's Technical Note TN1150, "Unicode Subtleties"; git's utf8.c
// has the same list), and ext4 and f2fs in folders that fold case, which leave
// out all that Unicode calls Default_Ignorable_Code_Point.
func ignorable(r rune) bool {
	switch {
	case r < 0xad:
		return false
	case r == 0xad, r == 0x34f, r == 0x61c, r == 0x115f, r == 0x1160, r == 0x17b4, r == 0x17b5, r >= 0x180b && r <= 0x180f:
		return true
	case r >= 0x200b && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2060 && r <= 0x206f:
		return true
	case r == 0x3164, r >= 0xfe00 && r <= 0xfe0f, r == 0xfeff, r == 0xffa0, r >= 0xfff0 && r <= 0xfff8:
		return true
	}
	return r >= 0x1bca0 && r <= 0x1bca3 || r >= 0x1d173 && r <= 0x1d17a || r >= 0xe0000 && r <= 0xe0fff
}

// short says whether name is one that Windows may have made as the 8.3 form of
// full: "git~1" of ".git". Both are folded.
//
// The form has the first six characters of the name without its dots and
// spaces, or after four collisions the first two and four digits of a hash.
func short(name, full string) bool {
	i := strings.IndexByte(name, '~')
	if i < 1 || i > 6 || full == "" {
		return false
	}
	number, ext, _ := strings.Cut(name[i+1:], ".")
	if number == "" || strings.Trim(number, "0123456789") != "" {
		return false
	}
	stem, fullExt := full, ""
	if j := strings.LastIndexByte(full, '.'); j > 0 {
		stem, fullExt = full[:j], full[j+1:]
	}
	var b [6]byte
	n := 0
	for j := 0; j < len(stem) && n < len(b); j++ {
		if stem[j] != '.' && stem[j] != ' ' {
			b[n] = stem[j]
			n++
		}
	}
	hashed := i == 6 && n >= 2 && name[:2] == string(b[:2]) && strings.Trim(name[2:i], "0123456789abcdef") == ""
	return (name[:i] == string(b[:n]) || hashed) && ext == fullExt[:min(3, len(fullExt))]
}
