package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

// randomValue makes a credential of any bytes that one may have.
func randomValue(r *rand.Rand) string {
	b := make([]byte, 16+r.IntN(80))
	for i := range b {
		switch r.IntN(4) {
		case 0:
			b[i] = `"\'<>&%+/=:;,?# $@!~`[r.IntN(20)]
		default:
			b[i] = byte(0x21 + r.IntN(0x5e))
		}
	}
	if r.IntN(4) == 0 {
		copy(b[4:], "é\u2028ß")
	}
	s := strings.TrimSpace(string(b))
	return s + "x"
}

// ways are how a value gets into a log, each with what reads it back.
var ways = []struct {
	name string
	put  func(string) string
	get  func(string) string
}{
	{"plain", func(s string) string { return s }, func(s string) string { return s }},
	{"query", url.QueryEscape, undo},
	{"path", url.PathEscape, undo},
	{"query, lower case", func(s string) string { return lowerEscapes(url.QueryEscape(s)) }, undo},
	{"every byte escaped", allEscaped, undo},
	{"JSON", func(s string) string { b, _ := json.Marshal(s); return string(b) }, nil},
	{"quoted", strconv.Quote, nil},
	{"quoted, ASCII", strconv.QuoteToASCII, nil},
	{"error", func(s string) string {
		return fmt.Errorf("dial: %w", &url.Error{Op: "Get", URL: "https://x/?k=" + url.QueryEscape(s), Err: errors.New("refused")}).Error()
	}, undo},
	{"HTML", html.EscapeString, html.UnescapeString},
	{"hex", func(s string) string { return hex.EncodeToString([]byte(s)) }, nil},
	{"HEX", func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) }, nil},
	{"base64", func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }, nil},
	{"base64 of more", func(s string) string { return base64.StdEncoding.EncodeToString([]byte("a" + s + "tail")) }, nil},
	{"base64 of basic", func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+s)) }, nil},
	{"base64 for URLs", func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte("ab" + s + "c")) }, nil},
	{"slog text", func(s string) string { return logged(s, false) }, nil},
	{"slog JSON", func(s string) string { return logged(s, true) }, nil},
	{"panic", panicked, nil},
}

func logged(s string, asJSON bool) string {
	var b bytes.Buffer
	var h slog.Handler = slog.NewTextHandler(&b, nil)
	if asJSON {
		h = slog.NewJSONHandler(&b, nil)
	}
	slog.New(h).Info("request", "header", s, "error", errors.New("it said "+s))
	return b.String()
}

func panicked(s string) (text string) {
	defer func() { text = fmt.Sprintf("panic: %v\n%s", recover(), debug.Stack()) }()
	panic("unexpected header " + s)
}

// TestRedact is C14: whatever a value was put into, Redact takes it out, and
// leaves the rest.
func TestRedact(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 9))
	for range 40 {
		v := randomValue(r)
		e, err := NewEdge([]*api.EdgeSecret{edgeSecret(t, "own", &api.SecretDefinition{
			Hosts: []string{"a.example"}, Kind: api.SecretKind_SECRET_KIND_BASIC, User: "user", Methods: []string{"GET"}, Paths: []string{"/"},
		}, v)})
		if err != nil {
			t.Fatalf("%q: %v", v, err)
		}
		for _, w := range ways {
			sink := "before " + w.put(v) + " after"
			got := e.Redact(sink)
			if !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") || !strings.Contains(got, "[secret own]") {
				t.Errorf("%s of %q: %q", w.name, v, got)
			}
			// Not even most of it is there, in any form that can be read back.
			texts := []string{got}
			if w.get != nil {
				texts = append(texts, w.get(got))
			}
			for _, text := range texts {
				for i := 0; i+8 <= len(v); i++ {
					for _, f := range []string{v[i : i+8], hex.EncodeToString([]byte(v[i : i+8])), url.QueryEscape(v[i : i+8])} {
						if strings.Contains(text, f) {
							t.Fatalf("%s of %q: %q is left in %q", w.name, v, f, text)
						}
					}
				}
			}
			if strings.Contains(sink, "[secret own]") {
				t.Errorf("control: %q", sink)
			}
		}
		if s := "nothing to see: " + v[:7]; e.Redact(s) != s {
			t.Errorf("a text without the value became %q", e.Redact(s))
		}
	}
	var none *Edge
	if none.Redact("x") != "x" {
		t.Error("the nil edge changes texts")
	}
}

// TestNothingPrints: values do not come out by printing what holds them, nor in
// any error.
func TestNothingPrints(t *testing.T) {
	e := edge(t)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, x := range []any{e, e.secrets["own"], e.secrets} {
			s := fmt.Sprintf(format, x)
			for _, f := range e.secrets["own"].forms() {
				if strings.Contains(s, f) {
					t.Errorf("%s of %T prints the value", format, x)
				}
			}
		}
	}
	for _, c := range []func() error{
		func() error {
			return e.Outgoing(request("GET", "http://api.example.org/?key=1", ""), "api.example.org", 443, "own")
		},
		func() error {
			return e.Outgoing(request("GET", "https://api.example.org/?key=1", ""), "api.example.org", 443, "own")
		},
		func() error {
			_, err := NewEdge([]*api.EdgeSecret{{Name: "x", Definition: e.secrets["own"].d, Value: []byte(value + "\n")}})
			return err
		},
		func() error { return CheckValue([]byte(value + "\x00")) },
	} {
		if err := c(); err == nil || strings.Contains(err.Error(), value) {
			t.Errorf("%v", err)
		}
	}
}
