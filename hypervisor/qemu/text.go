package qemu

import (
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Escape returns the last at most limit bytes of p as one line that is safe to
// print: whatever is not printable is written as a backslash sequence.
func Escape(p []byte, limit int) string {
	if len(p) > limit {
		p = p[len(p)-limit:]
	}
	const hex = "0123456789abcdef"
	var b strings.Builder
	for len(p) > 0 {
		r, n := utf8.DecodeRune(p)
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
		case r == utf8.RuneError || r == '\\' || !unicode.IsPrint(r):
			for _, c := range p[:n] {
				b.WriteString(`\x`)
				b.WriteByte(hex[c>>4])
				b.WriteByte(hex[c&15])
			}
		default:
			b.WriteRune(r)
		}
		p = p[n:]
	}
	return b.String()
}

// tail keeps the last bytes written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	buf   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > t.limit {
		p = p[len(p)-t.limit:]
	}
	if over := len(t.buf) + len(p) - t.limit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.buf...)
}
