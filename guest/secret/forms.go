package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// encoded returns the forms in which a text turns up in requests, answers and
// logs, longest first and each once: as it is, escaped for URLs, JSON, Go and
// HTML, in hex, and in base64 wherever in a longer text it stands.
func encoded(s string) []string {
	q, p := url.QueryEscape(s), url.PathEscape(s)
	j, _ := json.Marshal(s) // a string can always be marshalled
	var plainJSON strings.Builder
	enc := json.NewEncoder(&plainJSON)
	enc.SetEscapeHTML(false)
	enc.Encode(s)
	h := hex.EncodeToString([]byte(s))
	forms := []string{s, q, p, lowerEscapes(q), lowerEscapes(p), allEscaped(s), strings.ToLower(allEscaped(s)),
		inner(string(j)), inner(strings.TrimSpace(plainJSON.String())), inner(strconv.Quote(s)), inner(strconv.QuoteToASCII(s)), html.EscapeString(s),
		h, strings.ToUpper(h), base64.StdEncoding.EncodeToString([]byte(s)), base64.URLEncoding.EncodeToString([]byte(s))}
	for shift := range 3 {
		forms = append(forms, core(base64.RawStdEncoding, s, shift), core(base64.RawURLEncoding, s, shift))
	}
	slices.SortFunc(forms, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return slices.Compact(forms)
}

func inner(quoted string) string { return strings.TrimSuffix(strings.TrimPrefix(quoted, `"`), `"`) }

// lowerEscapes writes %2F as %2f.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], strings.ToLower(s[i+1:i+3]))
			i += 2
		}
	}
	return string(b)
}

func allEscaped(s string) string {
	h := strings.ToUpper(hex.EncodeToString([]byte(s)))
	var b strings.Builder
	for i := 0; i < len(h); i += 2 {
		b.WriteByte('%')
		b.WriteString(h[i : i+2])
	}
	return b.String()
}

// core returns the part of s's base64 that is the same whatever stands before
// and after s, when shift bytes (mod 3) stand before it. It is at most eight
// bits short of s at either end.
func core(enc *base64.Encoding, s string, shift int) string {
	e := enc.EncodeToString(append(make([]byte, shift), s...))
	first := []int{0, 2, 3}[shift]    // characters that hold bits of what is before
	whole := (shift + len(s)) * 8 / 6 // characters all of whose bits are known
	return e[min(first, whole):whole]
}

// forms are those of the value, and of basic authentication with it.
func (b *bound) forms() []string {
	f := encoded(string(b.value))
	if b.d.User != "" {
		f = append([]string{base64.StdEncoding.EncodeToString([]byte(b.d.User + ":" + string(b.value)))}, f...)
	}
	return f
}

// replacer makes what Redact does. Longer forms come first, so that of two that
// begin alike the one is taken that leaves nothing behind.
func (e *Edge) replacer() *strings.Replacer {
	type form struct{ text, mark string }
	var all []form
	for _, b := range e.secrets {
		for _, f := range b.forms() {
			all = append(all, form{f, "[secret " + b.name + "]"})
		}
	}
	slices.SortFunc(all, func(a, b form) int {
		if len(a.text) != len(b.text) {
			return len(b.text) - len(a.text)
		}
		return strings.Compare(a.text+a.mark, b.text+b.mark)
	})
	var pairs []string
	for _, f := range all {
		pairs = append(pairs, f.text, f.mark)
	}
	return strings.NewReplacer(pairs...)
}

// Redact replaces every value in s, in whatever form, by the secret's name.
func (e *Edge) Redact(s string) string {
	if e == nil || len(e.secrets) == 0 {
		return s
	}
	return e.redact.Replace(s)
}

// Redactor returns what takes the values of these secrets out of a text, in
// whatever form, as Redact does. It needs no definition to be whole.
func Redactor(secrets []*api.EdgeSecret) func(string) string {
	e := &Edge{secrets: map[string]*bound{}}
	for _, s := range secrets {
		d := s.GetDefinition()
		if d == nil {
			d = new(api.SecretDefinition)
		}
		e.secrets[s.GetName()] = &bound{name: s.GetName(), d: d, value: bytes.Clone(s.GetValue())}
	}
	return e.replacer().Replace
}
