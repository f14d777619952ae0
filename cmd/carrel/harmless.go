package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// dangerous says whether a terminal could take r for a command, or show the
// text around it as something else. A newline and a tab are for the caller to
// decide.
func dangerous(r rune) bool {
	switch {
	case r < 0x20, r == 0x7f: // C0: escape sequences begin here
	case r >= 0x80 && r <= 0x9f: // C1: CSI and OSC as one character
	case r == 0x061c, r == 0x200e, r == 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // bidi
	case r == 0x2028, r == 0x2029: // line and paragraph separators
	case r == 0xfeff, r >= 0xfff9 && r <= 0xfffb: // invisible, and interlinear
	case r >= 0xe0000 && r <= 0xe007f: // tags: invisible text
	default:
		return false
	}
	return true
}

// invisible says whether r takes no room of its own: a word can be hidden in
// such characters, and two names that differ look the same. A guest's output may
// have them, since emoji and some scripts are made with them; what a person says
// yes to shows them.
func invisible(r rune) bool {
	switch {
	case r == 0x00ad, r == 0x034f, r == 0x115f, r == 0x1160, r == 0x17b4, r == 0x17b5, r == 0x3164, r == 0xffa0: // soft hyphen, joiners, fillers
	case r >= 0x180b && r <= 0x180f, r >= 0xfe00 && r <= 0xfe0f, r >= 0xe0100 && r <= 0xe01ef: // variation selectors
	case r >= 0x200b && r <= 0x200d, r >= 0x2060 && r <= 0x206f: // zero width
	case r >= 0x1bca0 && r <= 0x1bca3, r >= 0x1d173 && r <= 0x1d17a, r >= 0xe0000 && r <= 0xe0fff:
	default:
		return false
	}
	return true
}

func escape(b *strings.Builder, r rune) {
	switch {
	case r == '\n':
		b.WriteString(`\n`)
	case r == '\r':
		b.WriteString(`\r`)
	case r == '\t':
		b.WriteString(`\t`)
	case r < 0x80:
		fmt.Fprintf(b, `\x%02x`, r)
	case r <= 0xffff:
		fmt.Fprintf(b, `\u%04x`, r)
	default:
		fmt.Fprintf(b, `\U%08x`, r)
	}
}

// safe makes s one line that a terminal shows as it is. Every message of ours
// that repeats something goes through it.
func safe(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case dangerous(r), invisible(r):
			escape(&b, r)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// harmless passes a guest's output to a terminal that nobody lent to the guest:
// text, newlines and tabs as they are, everything else visibly escaped. It
// never waits for more than the rest of one character.
type harmless struct {
	w    io.Writer
	rest []byte // the beginning of a character, or a carriage return
}

func (h *harmless) Write(p []byte) (int, error) {
	in := append(h.rest, p...)
	h.rest = nil
	var b strings.Builder
	b.Grow(len(in))
	for i := 0; i < len(in); {
		c := in[i]
		switch {
		case c == '\n' || c == '\t' || c >= 0x20 && c < 0x7f:
			b.WriteByte(c)
			i++
			continue
		case c == '\r' && i+1 == len(in):
			h.rest = []byte{c}
			i++
			continue
		case c == '\r' && in[i+1] == '\n':
			i++ // the end of a line, as Windows has it
			continue
		case c >= utf8.RuneSelf && !utf8.FullRune(in[i:]):
			h.rest = append([]byte(nil), in[i:]...)
			i = len(in)
			continue
		}
		r, n := utf8.DecodeRune(in[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, c)
		case dangerous(r):
			escape(&b, r)
		default:
			b.Write(in[i : i+n])
		}
		i += n
	}
	if _, err := io.WriteString(h.w, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what waits for a rest that will not come.
func (h *harmless) Flush() error {
	var b strings.Builder
	for _, c := range h.rest {
		if c == '\r' {
			escape(&b, '\r')
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	h.rest = nil
	_, err := io.WriteString(h.w, b.String())
	return err
}
