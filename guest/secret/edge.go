package secret

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/carrel-vm/carrel/guest/api"
)

// Edge are the secrets that one guest's requests may get, and what keeps other
// credentials out of them. It does not change once it is made: a new value, or
// a secret taken away, is a new Edge. The nil Edge has no secrets.
type Edge struct {
	secrets map[string]*bound
	leaks   *matcher          // placeholders, in every form
	values  *matcher          // values, in every form, for answers
	redact  *strings.Replacer // the same, for texts
	bodies  *semaphore.Weighted
}

// bound is one secret with all that is known of it.
type bound struct {
	name   string
	d      *api.SecretDefinition
	value  []byte
	grants []grant
	pass   map[string]*pass
	fields []field
}

// Format keeps values out of whatever prints an edge, or a secret in it.
func (e *Edge) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "edge of %d secrets", len(e.secrets)) }

// Format is for the same.
func (b *bound) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "secret %s", b.name) }

// maxBodies bounds the bodies that one edge holds in memory, in bytes.
const maxBodies = 4 * maxBody

// NewEdge makes the edge of these secrets, whose definitions must be complete.
func NewEdge(secrets []*api.EdgeSecret) (*Edge, error) {
	if len(secrets) > MaxSecrets {
		return nil, fmt.Errorf("%d secrets are too many (at most %d)", len(secrets), MaxSecrets)
	}
	e := &Edge{secrets: map[string]*bound{}, bodies: semaphore.NewWeighted(maxBodies)}
	var leaks, values []pattern
	for _, s := range secrets {
		if err := CheckName(s.GetName()); err != nil {
			return nil, err
		}
		if s.Definition == nil || e.secrets[s.Name] != nil {
			return nil, fmt.Errorf("secret %s comes twice, or without its definition", s.Name)
		}
		b := &bound{name: s.Name, d: s.Definition, value: bytes.Clone(s.Value), grants: grants(s.Definition)}
		err := check(b.d)
		if err == nil {
			err = CheckValue(b.value)
		}
		if err == nil && (bytes.Contains(b.value, []byte(b.d.Placeholder)) || strings.Contains(b.d.Placeholder, string(b.value))) {
			err = errors.New("its value and its placeholder hold each other (choose another placeholder)")
		}
		if err == nil {
			b.pass, err = compilePass(b.d.PassHeaders)
		}
		if err == nil {
			b.fields, err = compileFields(b.d.RefuseFields)
		}
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", s.Name, err)
		}
		e.secrets[s.Name] = b
		leaks = append(leaks, patternsOf(b.name, encoded(b.d.Placeholder))...)
		if len(b.value) <= maxScrubbed {
			values = append(values, patternsOf(b.name, b.forms())...)
		}
	}
	e.leaks, e.values, e.redact = newMatcher(leaks), newMatcher(values), e.replacer()
	return e, nil
}

// Has says whether there is a secret of that name.
func (e *Edge) Has(secret string) bool { return e != nil && e.secrets[secret] != nil }

// Outgoing makes r fit to leave for host:port. With a secret:
//
//  1. the secret is one that may go to this host and port, by this method
//  2. the query has no key that could hold a credential
//  3. headers that are not on the list are taken out, the guest's own
//     credentials among them
//  4. a body that has to be looked into is read, looked into, and put back
//  5. no placeholder is left in what leaves
//  6. the credential is added
//
// It must be called only when the server has proved, over TLS, to be host.
// Without a secret only step 5 happens; steps 2 and 3 too, at a host that a
// secret is for: there a credential of the guest's own would mean something (the
// Files API attack). err is a *Refused unless the guest's body cannot be read.
func (e *Edge) Outgoing(r *http.Request, host string, port uint16, secret string) error {
	if secret == "" {
		if of := e.of(host); len(of) > 0 {
			if err := narrow(r, of...); err != nil {
				return err
			}
		}
		return e.leak(r)
	}
	b := (*bound)(nil)
	if e != nil {
		b = e.secrets[secret]
	}
	if b == nil {
		return refuse("the secret %.40q that this request needs has been taken away", secret)
	}
	kind, err := b.fits(r, host, port)
	if err != nil {
		return err
	}
	if err := narrow(r, b); err != nil {
		return err
	}
	if err := e.look(r, b); err != nil {
		return err
	}
	if err := e.leak(r); err != nil {
		return err
	}
	b.add(r.Header, kind)
	return nil
}

// Authorize adds a secret's credential to a request of our own, if the secret may
// go there: over TLS only, to a host, port and by a method that it is for. What
// else is in the request is not looked at.
func Authorize(r *http.Request, s *api.EdgeSecret) error {
	e, err := NewEdge([]*api.EdgeSecret{s})
	if err != nil {
		return err
	}
	port := uint64(443)
	if p := r.URL.Port(); p != "" {
		if port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return fmt.Errorf("port %.20q is not possible", p)
		}
	}
	b := e.secrets[s.Name]
	kind, err := b.fits(r, r.URL.Hostname(), uint16(port))
	if err != nil {
		return err
	}
	b.add(r.Header, kind)
	return nil
}

// of returns the secrets that are for host, whatever the port.
func (e *Edge) of(host string) (out []*bound) {
	if e == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(e.secrets)) {
		if b := e.secrets[name]; slices.Contains(b.d.Hosts, host) {
			out = append(out, b)
		}
	}
	return out
}

// narrow takes out of a request what could be another credential than those of
// these secrets: they are for one host.
func narrow(r *http.Request, of ...*bound) error {
	if err := checkQuery(r.URL); err != nil {
		return err
	}
	h, err := clean(r.Header, of...)
	if err != nil {
		return err
	}
	r.Header = h
	r.Trailer = nil // a trailer is a header that comes late
	return nil
}

// fits says whether the secret may go with this request, and in which form.
// Rules made from the definition have said so already; a secret is not given
// away by a mistake in one place.
func (b *bound) fits(r *http.Request, host string, port uint16) (api.SecretKind, error) {
	if r.URL.Scheme != "" && r.URL.Scheme != "https" {
		return 0, refuse("the secret %s is sent over verified TLS only, and this is %.20q", b.name, r.URL.Scheme)
	}
	if !slices.Contains(b.d.Ports, uint32(port)) {
		return 0, refuse("the secret %s is not for port %d", b.name, port)
	}
	known := false
	for _, g := range b.grants {
		if g.host != host {
			continue
		}
		known = true
		if slices.Contains(g.methods, r.Method) {
			return g.kind, nil
		}
	}
	if known {
		return 0, refuse("the secret %s is not for the method %.20q", b.name, r.Method)
	}
	return 0, refuse("the secret %s is not for the host %.80q", b.name, host)
}

// add puts the credential into the headers.
func (b *bound) add(h http.Header, kind api.SecretKind) {
	switch kind {
	case api.SecretKind_SECRET_KIND_BEARER:
		h.Set("Authorization", "Bearer "+string(b.value))
	case api.SecretKind_SECRET_KIND_BASIC:
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString(append([]byte(b.d.User+":"), b.value...)))
	case api.SecretKind_SECRET_KIND_HEADER:
		h.Set(b.d.Header, string(b.value))
	}
}

// look reads a body whose fields have to be checked.
func (e *Edge) look(r *http.Request, b *bound) error {
	if len(b.fields) == 0 || r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return refuse("the body is packed (%.20q), and this secret's definition has to look into it: send it as it is", enc)
	}
	if r.ContentLength > maxBody {
		return refuse("the body has %d bytes, and at most %d can be looked into", r.ContentLength, maxBody)
	}
	room := int64(maxBody)
	if r.ContentLength > 0 {
		room = r.ContentLength
	}
	if err := e.bodies.Acquire(r.Context(), room); err != nil {
		return fmt.Errorf("wait for room for the request's body: %w", err)
	}
	var once sync.Once
	release := func() { once.Do(func() { e.bodies.Release(room) }) }
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	r.Body.Close()
	if err == nil && len(body) > maxBody {
		err = refuse("the body has more than %d bytes, which is the most that can be looked into", maxBody)
	}
	if err == nil && len(body) > 0 {
		if err = jsonType(r.Header); err == nil {
			err = checkFields(body, b.fields)
		}
	}
	if err != nil {
		release()
		return err
	}
	r.Body = &held{Reader: bytes.NewReader(body), release: release}
	r.ContentLength = int64(len(body))
	r.TransferEncoding = nil
	r.Header.Del("Content-Length")
	r.Header.Del("Expect") // the body has come already
	return nil
}

// held is a body in memory that gives its room back when it is closed.
type held struct {
	*bytes.Reader
	release func()
}

func (h *held) Close() error {
	h.release()
	return nil
}

// jsonType refuses a body that the server would not read as the JSON in UTF-8
// that was looked into. What is left of the type is its name: of parameters,
// servers make different things (charset*=, RFC 2231).
func jsonType(h http.Header) error {
	ct := h.Get("Content-Type")
	t, params, err := mime.ParseMediaType(ct)
	if err != nil || t != "application/json" && !(strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "+json")) {
		return refuse("the body is said to be %.60q, and with this secret only JSON may be sent", ct)
	}
	if c := params["charset"]; c != "" && !strings.EqualFold(c, "utf-8") && !strings.EqualFold(c, "utf8") {
		return refuse("the body is said to be written in %.40q, and only UTF-8 can be looked into", c)
	}
	h.Set("Content-Type", t)
	return nil
}
