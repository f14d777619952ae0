package mcp

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// Bounds of what one result holds of a guest's word, in bytes.
const (
	usualText = 32 << 10
	mostText  = 256 << 10
)

// untrusted is what a guest said.
type untrusted struct{ source, text string }

// metaUntrusted marks content for programs, as the words around it do for models.
const metaUntrusted = "carrel/untrusted"

// mark puts the words of a guest between marks that it cannot have foreseen, so
// that nothing in it can pass for their end.
func (u untrusted) mark() string {
	id := rand.Text()[:10]
	text := visible(u.text)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return fmt.Sprintf("<untrusted from=%q id=%q>\n%s</untrusted id=%q>", u.source, id, text, id)
}

// result is what a tool answers: our own words, then the guest's, each apart.
func result(own string, guests ...untrusted) *sdk.CallToolResult {
	r := &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: own}}}
	for _, u := range guests {
		r.Content = append(r.Content, &sdk.TextContent{Text: u.mark(), Meta: sdk.Meta{metaUntrusted: true}})
	}
	return r
}

// mostSaid bounds what a guest says beside its output, in bytes: an error, a cause.
const mostSaid = 4 << 10

// failure is an error as the agent gets it. One that came by way of the daemon may
// hold a guest's words, in its cause or in the name of what was touched: in our own
// part stands what its code means, and the error is marked.
func failure(err error) *sdk.CallToolResult {
	text := err.Error()
	if len(text) > mostSaid {
		text = cutAt(text, mostSaid) + " ..."
	}
	own, code, foreign := outside(err)
	if !foreign {
		r := result(visible(text))
		r.IsError, r.Meta = true, sdk.Meta{}
		return r
	}
	r := result(own, untrusted{"error", text})
	r.IsError, r.Meta = true, sdk.Meta{}
	if code != "" {
		r.Meta["carrel/code"] = code
	}
	return r
}

// outside says whether err came by way of the daemon, and if so in our own words
// what it means.
func outside(err error) (own, code string, foreign bool) {
	var e *client.Error
	var p *fs.PathError
	switch {
	case errors.As(err, &e):
		own, code = "it failed", e.Code
		if means := api.Codes[code]; means != "" {
			own += ": " + code + ". " + means
		}
		return own, code, true
	case errors.As(err, &p):
		return "it failed", "", true
	}
	return "", "", false
}

// visible shows what could hide from a reader: control characters, marks that turn
// the direction of text, and characters without a shape, such as the tags in which
// instructions to a model are smuggled (U+E0000 to U+E007F). New lines and tabs stay.
func visible(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n' || r == '\t' || r == ' ':
			b.WriteRune(r)
		case r == '\r' && strings.HasPrefix(s[i:], "\r\n"):
			b.WriteRune(r)
		case r < 0x80 && unicode.IsControl(r):
			fmt.Fprintf(&b, `\x%02x`, r)
		case unicode.IsPrint(r) && !shapeless(r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		i += n
	}
	return b.String()
}

// shapeless are printable by their category and seen by nobody: variation
// selectors, fillers (Unicode, DerivedCoreProperties, Default_Ignorable).
func shapeless(r rune) bool {
	return unicode.Is(unicode.Variation_Selector, r) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r)
}

// line is s as a part of one line of a question to a person. Of a long one the
// middle is left out: the end of a path says what the file is.
func line(s string) string {
	const most = 200
	s = strings.NewReplacer("\n", `\n`, "\t", `\t`, "\r", `\r`).Replace(visible(s))
	if len(s) > most {
		end := len(s) - most/2
		for end < len(s) && !utf8.RuneStart(s[end]) {
			end++
		}
		s = cutAt(s, most/2) + "..." + s[end:]
	}
	return s
}

// cutAt cuts s to at most n bytes, between runes.
func cutAt(s string, n int) string {
	for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:min(n, len(s))]
}

// bounded keeps the beginning and the end of what is written to it, and counts the
// rest. It has a size of limit bytes.
type bounded struct {
	limit   int
	head    []byte
	tail    []byte // a ring of the last limit/2 bytes once it is full
	at      int
	dropped int64
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if room := b.limit - b.limit/2 - len(b.head); room > 0 {
		k := min(room, len(p))
		b.head = append(b.head, p[:k]...)
		p = p[k:]
	}
	half := b.limit / 2
	if over := len(p) - half; over > 0 {
		b.dropped += int64(over)
		p = p[over:]
	}
	if k := min(half-len(b.tail), len(p)); k > 0 {
		b.tail = append(b.tail, p[:k]...)
		p = p[k:]
	}
	b.dropped += int64(len(p))
	for len(p) > 0 {
		k := copy(b.tail[b.at:], p)
		b.at = (b.at + k) % len(b.tail)
		p = p[k:]
	}
	return n, nil
}

// String is what was kept, with a line for what was not. The line's words are
// among the guest's: the result's own words have the number, too.
func (b *bounded) String() string {
	tail := string(b.tail[b.at:]) + string(b.tail[:b.at])
	if b.dropped == 0 {
		return string(b.head) + tail
	}
	return fmt.Sprintf("%s\n[... %d bytes are left out here ...]\n%s", b.head, b.dropped, tail)
}
