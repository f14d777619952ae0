//go:build unix

package seatbelt

import (
	"fmt"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// tailMax is how much of a guest's last words is kept, in bytes.
const tailMax = 2 << 10

// tail keeps the end of what is printed.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) add(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.b = append(t.b, p...); len(t.b) > tailMax {
		t.b = append(t.b[:0], t.b[len(t.b)-tailMax:]...)
	}
}

// text is what was kept in one line, every byte that a terminal could obey
// escaped.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for p := []byte(strings.TrimSpace(string(t.b))); len(p) > 0; {
		r, n := utf8.DecodeRune(p)
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == utf8.RuneError || r == '\\' || !unicode.IsPrint(r):
			for _, c := range p[:n] {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		default:
			b.WriteRune(r)
		}
		p = p[n:]
	}
	return b.String()
}
