package policy

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// ParseURL takes what a person asks about: "https://host[:port]/path",
// "http://...", or "host[:port]", which is about a connection: the Request's
// Path is then empty. clear says that the request would not be in TLS.
func ParseURL(s string) (d Destination, r Request, clear bool, err error) {
	scheme, rest, is := strings.Cut(s, "://")
	if !is {
		d, err = ParseDestination(s, 443)
		return d, Request{}, false, err
	}
	port := uint16(443)
	switch asciiLower(scheme) {
	case "https":
	case "http":
		port, clear = 80, true
	default:
		return d, r, false, fmt.Errorf("%q is not a scheme that can be asked about (use https or http)", clip(scheme))
	}
	host, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host, path = rest[:i], rest[i:]
	}
	if strings.Contains(host, "@") {
		return d, r, false, errors.New("the URL holds a user name (leave it out: it is no part of the decision)")
	}
	if d, err = ParseDestination(host, port); err != nil {
		return d, r, false, err
	}
	path, _, _ = strings.Cut(path, "#")
	path, _, _ = strings.Cut(path, "?")
	if path == "" {
		path = "/"
	}
	// A person types what a program would escape.
	if u, err := url.Parse(path); err == nil && u.Host == "" {
		path = u.EscapedPath()
	}
	return d, Request{Method: "GET", Path: path}, clear, nil
}

// RuleFromFlag makes the allow rule of "--allow HOST[:PORT]". Whether the rule
// as a whole is possible, NewEgress and CheckRule say.
func RuleFromFlag(s string) (*api.EgressRule, error) {
	r := &api.EgressRule{Action: allow, Host: s}
	// "*" and "*.example.org" are not destinations; their port is cut off by hand.
	if prefix, is := wildcard(s); is {
		host, port, has := strings.Cut(s[len(prefix):], ":")
		r.Host = prefix + host
		if has {
			p, err := parsePort(port)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", clip(s), err)
			}
			r.Ports = []uint32{uint32(p)}
		}
	} else {
		d, err := ParseDestination(s, 0)
		if err == nil {
			r.Ports = []uint32{uint32(d.Port)}
		} else if d, err = ParseDestination(s, 443); err != nil {
			return nil, err
		}
		r.Host = d.Host.String()
	}
	_, err := parsePattern(r.Host)
	return r, err
}

// wildcard returns what of a rule's host is not a host: "*" or "*.".
func wildcard(s string) (prefix string, is bool) {
	for _, p := range []string{"*.", "*"} {
		if strings.HasPrefix(s, p) {
			return p, true
		}
	}
	return "", false
}
