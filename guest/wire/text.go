package wire

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text makes a string from a guest fit to be shown and logged: at most max
// bytes, one line, valid UTF-8, and without control characters or those that
// turn the direction of writing.
func Text(s string, max int) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len()+utf8.RuneLen(r) > max {
			break
		}
		switch {
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case r == utf8.RuneError || !unicode.IsPrint(r):
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
