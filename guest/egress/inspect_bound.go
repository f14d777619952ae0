package egress

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/carrel-vm/carrel/guest/secret"
)

// A host that a secret is for is one where credentials mean something. Where
// another rule lets a request through to it that the secret is not added to, the
// guest's own credentials must not go either: whoever sends a file to such a host
// with a key of their own has carried it out (the Files API attack).

// stripCredentials takes out the headers that hold a credential, and refuses a
// query that does.
func stripCredentials(r *http.Request) error {
	for name := range r.Header {
		if credential(name) {
			delete(r.Header, name)
		}
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &secret.Refused{Reason: "a secret is for this host, and the query cannot be read in one way only"}
	}
	for key := range q {
		if credential(key) {
			return &secret.Refused{Reason: "a secret is for this host, and the query has a key under which another credential could travel"}
		}
	}
	return nil
}

// credential says whether a header or key of that name may hold one, in whatever
// spelling.
func credential(name string) bool {
	var b strings.Builder
	for _, c := range strings.ToLower(name) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteRune(c)
		}
	}
	n := b.String()
	switch n {
	case "key", "sig", "code", "jwt", "sid", "pass", "user", "username", "ticket", "xkey":
		return true
	}
	for _, part := range []string{"auth", "cookie", "token", "apikey", "accesskey", "secret", "signature", "password", "credential", "session", "xamz", "xgoog", "xms"} {
		if strings.Contains(n, part) {
			return true
		}
	}
	return false
}
