package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

// FuzzFields holds the walk through a body against encoding/json: what passes
// has the field nowhere that the standard library finds it.
func FuzzFields(f *testing.F) {
	for _, s := range []string{`{"a":{"b":1}}`, `{"a":[{"b":"x"}],"c":null}`, `{"x":{"deep":{"t":"bad_1"}}}`, `{"A":{"B":0}}`, `[[[{"t":"ok"}]]]`, `{"a":{},"a":{"b":1}}`, `{"a":1}{"b":2}`, "{\"\\u0061\":{\"b\":1}}"} {
		f.Add([]byte(s))
	}
	fields, err := compileFields([]string{"a.b", "a.*.b", "**.t=bad_*", "only.t!=ok"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		err := checkFields(body, fields)
		var v any
		dec := json.NewDecoder(bytes.NewReader(body))
		dec.UseNumber() // 1e999 is JSON, and no float
		bad := dec.Decode(&v)
		if err != nil {
			if !errors.As(err, new(*Refused)) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		if bad != nil {
			t.Errorf("%q passed and is no JSON: %v", body, bad)
		}
		if top, ok := v.(map[string]any); ok {
			for k, a := range top {
				if strings.EqualFold(k, "a") && (has(a, "b") || any1(a, "b")) {
					t.Errorf("%q passed with a.b", body)
				}
			}
		}
		deep(v, func(k string, v any) {
			if s, ok := v.(string); ok && strings.EqualFold(k, "t") && strings.HasPrefix(strings.ToLower(s), "bad_") {
				t.Errorf("%q passed with t=%q", body, s)
			}
		})
	})
}

// has says whether v is an object with something in the field.
func has(v any, field string) bool {
	m, _ := v.(map[string]any)
	for k, x := range m {
		if strings.EqualFold(k, field) {
			switch x := x.(type) {
			case nil:
			case map[string]any:
				return len(x) > 0
			case []any:
				return len(x) > 0
			default:
				return true
			}
		}
	}
	return false
}

func any1(v any, field string) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			if has(x, field) {
				return true
			}
		}
	case []any:
		for _, x := range v {
			if has(x, field) {
				return true
			}
		}
	}
	return false
}

func deep(v any, f func(string, any)) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			f(k, x)
			deep(x, f)
		}
	case []any:
		for _, x := range v {
			deep(x, f)
		}
	}
}

// FuzzOutgoing: whatever a guest asks for, what leaves has one credential, ours,
// in one header, and no other header that was not listed.
func FuzzOutgoing(f *testing.F) {
	e := edge(f)
	f.Add("a=1&b=2", "X-Api-Key", "v", "{}", "/v1/messages")
	f.Add("api%5fkey=1", "x_api_key", "v", `{"mcp_servers":[1]}`, "/%2e")
	f.Add("", "Anthropic-Beta", "files-api-2025,claude-code-1", "", "/")
	f.Fuzz(func(t *testing.T, query, header, v, body, path string) {
		r := httptest.NewRequest("POST", "https://api.anthropic.com/", io.NopCloser(strings.NewReader(body)))
		r.URL.Path, r.URL.RawQuery = path, query
		r.Header = http.Header{header: {v}, "Content-Type": {"application/json"}}
		if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); err != nil {
			if !errors.As(err, new(*Refused)) {
				t.Fatal(err)
			}
			return
		}
		defer r.Body.Close()
		for name, vs := range r.Header {
			low := strings.ToLower(name)
			switch {
			case name == "X-Api-Key":
				if len(vs) != 1 || vs[0] != value+"anthropic" {
					t.Errorf("our header: %q", vs)
				}
			case !plain[low] && low != "anthropic-version" && low != "anthropic-beta":
				t.Errorf("header %q leaves", name)
			}
		}
		q, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			t.Errorf("query %q: %v", r.URL.RawQuery, err)
		}
		for k := range q {
			if credentialName(k) {
				t.Errorf("query key %q leaves", k)
			}
		}
		if got, err := io.ReadAll(r.Body); err != nil || string(got) != body {
			t.Errorf("the body changed: %q, %v", got, err)
		}
	})
}

// FuzzMatcher holds the table against a plain search, whatever the pieces.
func FuzzMatcher(f *testing.F) {
	f.Add("abcabcd", "abcd|bca|c", 2)
	f.Add("sk-sk-live", "sk-live|k-l", 1)
	f.Fuzz(func(t *testing.T, text, list string, piece int) {
		var ps []pattern
		for _, p := range strings.Split(list, "|") {
			if p != "" && len(p) < 100 && len(ps) < 20 {
				ps = append(ps, pattern{p, p})
			}
		}
		m := newMatcher(ps)
		if m == nil {
			return
		}
		want, seen := []byte(text), false
		for _, p := range ps {
			for i := 0; i+len(p.text) <= len(text); i++ {
				if text[i:i+len(p.text)] == p.text {
					seen = true
					stars(want[i : i+len(p.text)])
				}
			}
		}
		src := &pieces{[]byte(text), 1 + piece&7}
		got, err := io.ReadAll(&scrubber{src: io.NopCloser(src), m: m})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q without %q: %q, want %q, %v", text, list, got, want, err)
		}
		e := &Edge{leaks: m, secrets: map[string]*bound{}}
		if got := e.in(text, 0) != ""; got != seen {
			t.Errorf("%q in %q: %v", list, text, got)
		}
		_, err = io.ReadAll(e.Body(io.NopCloser(&pieces{[]byte(text), 1 + piece&7}), "x"))
		if got := errors.As(err, new(*Refused)); got != seen {
			t.Errorf("%q in the body %q: %v", list, text, err)
		}
	})
}

type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b[:min(p.n, len(p.b))])
	p.b = p.b[n:]
	return n, nil
}

// FuzzDefinition: no definition that is taken can go anywhere but to named
// hosts, or send what is not a header.
func FuzzDefinition(f *testing.F) {
	f.Add("a.example", "x-key", "GET", "/x", "KEY", "x-y=a*", "a.b!=c", "o/r")
	f.Add("a.example", "x-key", "GET", "/x", "KEY", "x-y=a*", "a.b!=c", "r/oro.") // whose "oro..git" goes nowhere else
	f.Add("a.example", "x-key", "GET", "/x", "KEY", "x-y=a*", "a.b!=c", "o/..")
	f.Fuzz(func(t *testing.T, host, header, method, path, env, pass, field, repo string) {
		for _, d := range []*api.SecretDefinition{
			{Hosts: []string{host}, Kind: api.SecretKind_SECRET_KIND_HEADER, Header: header, Methods: []string{method}, Paths: []string{path}, Env: env, PassHeaders: []string{pass}, RefuseFields: []string{field}},
			{Preset: "github", Repositories: []string{repo}},
		} {
			c, err := Complete("fuzz", d)
			if err != nil {
				continue
			}
			if _, err := Complete("fuzz", c); err != nil && d.Preset == "" {
				t.Errorf("complete once, and not twice: %v", err)
			}
			for _, r := range Rules("fuzz", c) {
				if strings.ContainsAny(r.Host, "*/:@ \x00") || r.Secret != "fuzz" || r.Wide || r.Private || len(r.Methods) == 0 || len(r.Paths) == 0 {
					t.Errorf("%v", r)
				}
				if d.Preset == "github" {
					for _, p := range r.Paths {
						at := strings.TrimPrefix(p, "/repos")
						if !strings.HasPrefix(at, "/"+repo) || strings.Contains(repo, "*") || strings.HasPrefix(at[1+len(repo):], "*") || slices.Contains(strings.Split(p, "/"), "..") {
							t.Errorf("%q", p)
						}
					}
				}
			}
			if _, err := NewEdge([]*api.EdgeSecret{{Name: "fuzz", Definition: c, Value: []byte("a-credential")}}); err != nil {
				t.Errorf("%v", err)
			}
		}
	})
}
