package seatbelt

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of a profile that is parsed.
const (
	// maxProfile is the longest text, in bytes. Only many shares with very long
	// paths make a longer one, which is then refused.
	maxProfile = 2 << 20
	// maxDepth is how deep lists may nest.
	maxDepth = 8
)

// kind is what an expression of a profile is.
type kind byte

const (
	list kind = iota
	symbol
	text   // "..."
	regex  // #"..."
	number // decimal
)

// expr is one expression of a profile: an atom or a list.
type expr struct {
	kind kind
	word string // an atom's value, unescaped
	of   []expr // a list's
	line int
}

// head is the first word of a list, or "".
func (e expr) head() string {
	if e.kind == list && len(e.of) > 0 && e.of[0].kind == symbol {
		return e.of[0].word
	}
	return ""
}

// parse reads a profile's expressions. The language is Scheme; what is read here
// is the part without variables, numbers' other bases, quotes or characters,
// which a profile of ours has no use for.
func parse(s string) ([]expr, error) {
	if len(s) > maxProfile {
		return nil, fmt.Errorf("the profile has %d bytes, %d is the limit", len(s), maxProfile)
	}
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("the profile is not UTF-8")
	}
	p := &parser{in: s, line: 1}
	var all []expr
	for {
		p.space()
		if p.at == len(p.in) {
			return all, nil
		}
		e, err := p.expr(0)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", p.line, err)
		}
		all = append(all, e)
	}
}

type parser struct {
	in       string
	at, line int
}

// space passes over white space and comments.
func (p *parser) space() {
	for ; p.at < len(p.in); p.at++ {
		switch p.in[p.at] {
		case '\n':
			p.line++
		case ' ', '\t':
		case ';':
			end := strings.IndexByte(p.in[p.at:], '\n')
			if end < 0 {
				p.at = len(p.in)
				return
			}
			p.at += end - 1
		default:
			return
		}
	}
}

func (p *parser) expr(depth int) (expr, error) {
	switch c := p.in[p.at]; {
	case c == '(':
		return p.list(depth)
	case c == ')':
		return expr{}, fmt.Errorf("a ) that closes nothing")
	case c == '"':
		return p.text()
	case c == '#' && strings.HasPrefix(p.in[p.at:], `#"`):
		return p.regex()
	default:
		return p.word()
	}
}

func (p *parser) list(depth int) (expr, error) {
	e := expr{kind: list, line: p.line}
	if depth == maxDepth {
		return e, fmt.Errorf("lists nest more than %d deep", maxDepth)
	}
	p.at++
	for {
		p.space()
		if p.at == len(p.in) {
			return e, fmt.Errorf("the ( of line %d is never closed", e.line)
		}
		if p.in[p.at] == ')' {
			p.at++
			return e, nil
		}
		i, err := p.expr(depth + 1)
		if err != nil {
			return e, err
		}
		e.of = append(e.of, i)
	}
}

// text reads a string as quote writes it. Of Scheme's escapes only those of the
// quotation mark and the backslash are known.
func (p *parser) text() (expr, error) {
	e := expr{kind: text, line: p.line}
	var b strings.Builder
	for p.at++; p.at < len(p.in); p.at++ {
		switch c := p.in[p.at]; {
		case c == '"':
			p.at++
			e.word = b.String()
			return e, p.delimited()
		case c == '\\':
			p.at++
			if p.at == len(p.in) || p.in[p.at] != '"' && p.in[p.at] != '\\' {
				return e, fmt.Errorf(`a \ in a string stands before neither " nor \`)
			}
			b.WriteByte(p.in[p.at])
		case c < ' ' || c == 0x7f:
			return e, fmt.Errorf("a control character (%#02x) in a string", c)
		default:
			b.WriteByte(c)
		}
	}
	return e, fmt.Errorf("a string is never closed")
}

// regex reads #"...", in which a backslash is the expression's own.
func (p *parser) regex() (expr, error) {
	e := expr{kind: regex, line: p.line}
	end := strings.IndexByte(p.in[p.at+2:], '"')
	if end < 0 {
		return e, fmt.Errorf("a regular expression is never closed")
	}
	e.word = p.in[p.at+2 : p.at+2+end]
	if strings.ContainsFunc(e.word, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return e, fmt.Errorf("a control character in a regular expression")
	}
	p.at += end + 3
	return e, p.delimited()
}

// word reads a symbol or a number.
func (p *parser) word() (expr, error) {
	from := p.at
	for p.at < len(p.in) && strings.IndexByte(" \t\n();\"", p.in[p.at]) < 0 {
		c := p.in[p.at]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("-*_", c) < 0 {
			return expr{}, fmt.Errorf("a %q in a word", c)
		}
		p.at++
	}
	e := expr{kind: symbol, word: p.in[from:p.at], line: p.line}
	if c := e.word[0]; c >= '0' && c <= '9' || c == '-' {
		if _, err := strconv.ParseUint(e.word, 10, 31); err != nil {
			return e, fmt.Errorf("%q is not a number", e.word)
		}
		e.kind = number
	}
	return e, p.delimited()
}

// delimited refuses two expressions without anything between them.
func (p *parser) delimited() error {
	if p.at < len(p.in) && strings.IndexByte(" \t\n();", p.in[p.at]) < 0 {
		return fmt.Errorf("a %q right after an expression", p.in[p.at])
	}
	return nil
}
