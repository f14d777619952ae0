package secret

import (
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// A placeholder is worth nothing, so one that leaves is no loss. It is refused
// all the same: whoever sent it took it for the credential and meant it for this
// place, and the user shall hear of that.

// leak refuses a request that has a placeholder in its URL or headers.
func (e *Edge) leak(r *http.Request) error {
	if e == nil || e.leaks == nil {
		return nil
	}
	u := r.URL
	for _, s := range []string{u.Path, u.RawPath, u.RawQuery, u.Opaque, u.Fragment, u.User.String()} {
		if n := e.in(s, 2); n != "" {
			return misplaced(n, "the URL")
		}
	}
	for _, headers := range []http.Header{r.Header, r.Trailer} {
		for name, values := range headers {
			if n := e.in(name, 0); n != "" {
				return misplaced(n, "a header's name")
			}
			for _, v := range values {
				n := e.in(v, 1)
				if n == "" {
					n = e.in(basic(v), 0)
				}
				if n != "" {
					return misplaced(n, "the header "+quoted(name))
				}
			}
		}
	}
	return nil
}

func misplaced(name, where string) error {
	return refuse("the placeholder of the secret %s is in %s: it stands for a credential that is only ever added outside the guest, on the way to its own host", name, where)
}

// quoted bounds a header's name, which the guest chose; HTTP has made sure that
// it is made of visible characters.
func quoted(name string) string {
	if len(name) > 60 {
		name = name[:60] + "..."
	}
	return name
}

// in returns the name of a secret whose placeholder is in s, or in what s is
// when its escapes are undone up to that many times.
func (e *Edge) in(s string, unescape int) string {
	for {
		state := int32(0)
		for i := range len(s) {
			if state = e.leaks.step(state, s[i]); len(e.leaks.found[state]) > 0 {
				return e.leaks.found[state][0]
			}
		}
		if unescape == 0 || !strings.Contains(s, "%") {
			return ""
		}
		unescape--
		s = undo(s)
	}
}

// undo replaces what is a percent escape and leaves the rest.
func undo(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if u, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(u)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// basic returns the user and the password of a header of basic authentication.
func basic(v string) string {
	scheme, rest, _ := strings.Cut(strings.TrimSpace(v), " ")
	if !strings.EqualFold(scheme, "basic") {
		return ""
	}
	rest = strings.TrimRight(strings.TrimSpace(rest), "=")
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(rest); err == nil {
			return string(b)
		}
	}
	return ""
}

// Body wraps the body of a request to host, as it streams through: reading it
// fails with a *Refused when a placeholder is seen, also across the borders of
// pieces. To a secret's own hosts its own placeholder may go: they have the
// credential itself, and an agent's conversation quotes its environment.
func (e *Edge) Body(r io.ReadCloser, host string) io.ReadCloser {
	if r == nil || r == http.NoBody || e == nil || e.leaks == nil {
		return r
	}
	l := &leakReader{ReadCloser: r, m: e.leaks}
	for n, b := range e.secrets {
		if slices.Contains(b.d.Hosts, host) {
			l.own = append(l.own, n)
		}
	}
	return l
}

type leakReader struct {
	io.ReadCloser
	m     *matcher
	own   []string
	state int32
	err   error
}

func (l *leakReader) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.ReadCloser.Read(p)
	for _, c := range p[:n] {
		l.state = l.m.step(l.state, c)
		for _, owner := range l.m.found[l.state] {
			if !slices.Contains(l.own, owner) {
				clear(p[:n])
				l.err = misplaced(owner, "the body")
				return 0, l.err
			}
		}
	}
	return n, err
}
