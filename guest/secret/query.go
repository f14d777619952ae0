package secret

import (
	"net/url"
	"strings"
)

// credentials are names, folded, under which servers take a credential from a
// query or a header.
var credentials = set("key", "apikey", "auth", "authorization", "bearer", "credential", "credentials", "cookie", "cookie2", "jwt", "pass", "passwd", "passphrase", "pwd",
	"accesskey", "accesskeyid", "awsaccesskeyid", "googleaccessid", "secretkey", "privatekey", "sessionkey", "session", "sessionid", "sid", "phpsessid", "jsessionid",
	"sig", "sas", "hmac", "otp", "pat", "code", "authentication", "proxyauthorization", "proxyauthenticate", "xauth", "ticket", "assertion", "saml", "samlresponse")

// endings of such names, and beginnings: X-Amz-Signature, x-goog-api-key.
var (
	endings    = []string{"token", "apikey", "authkey", "appkey", "secret", "signature", "password", "credential", "accesskey", "subscriptionkey"}
	beginnings = []string{"xamz", "xgoog", "xms", "oauth"}
	// harmless are names that end so and say where a listing goes on.
	harmless = set("pagetoken", "nextpagetoken", "nexttoken", "continuationtoken", "paginationtoken", "synctoken")
)

// credentialName says whether a header or a query key of this name could hold a
// credential, in whatever spelling: "API-Key", "api_key" and "apikey" are one.
func credentialName(name string) bool {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			b.WriteRune(r)
		}
	}
	n := b.String()
	if harmless[n] {
		return false
	}
	if credentials[n] || credentials[strings.TrimPrefix(n, "x")] {
		return true
	}
	for _, e := range endings {
		if strings.HasSuffix(n, e) {
			return true
		}
	}
	for _, s := range beginnings {
		if strings.HasPrefix(n, s) {
			return true
		}
	}
	return false
}

// maxQuery bounds the pairs of a query.
const maxQuery = 1000

// checkQuery refuses a query that has a key under which a credential could
// travel, or one that servers may read in different ways.
func checkQuery(u *url.URL) error {
	if u.User != nil {
		return refuse("the URL has a user and a password in it")
	}
	if strings.Count(u.RawQuery, "&") > maxQuery {
		return refuse("the query has more than %d keys", maxQuery)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return refuse("the query cannot be read in one way only (a semicolon, or a %% that begins no escape)")
	}
	for k := range q {
		// PHP and Rails read "a[b]" as b within a.
		if strings.ContainsFunc(k, func(r rune) bool {
			return r <= ' ' && r != ' ' || r >= 0x7f || r == '%' || r == '&' || r == '=' || r == ';'
		}) {
			return refuse("the query has the key %.60q, which servers may read in different ways", k)
		}
		parts := append(strings.FieldsFunc(k, func(r rune) bool { return r == '[' || r == ']' || r == '.' }), k)
		for _, p := range parts {
			if credentialName(p) {
				return refuse("the query has the key %.60q, under which a credential could travel: with this secret none but Carrel's own may", k)
			}
		}
	}
	return nil
}
