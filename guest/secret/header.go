package secret

import (
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
)

// plain are the request headers that pass to a secret's host without being
// named: negotiation of content, its description, ranges and conditions.
// Everything else, every credential among it, is taken out.
var plain = set("accept", "accept-charset", "accept-encoding", "accept-language", "cache-control",
	"content-encoding", "content-language", "content-length", "content-type", "expect",
	"if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since",
	"last-event-id", "pragma", "range", "te", "user-agent")

// framing headers belong to a connection and not to a request (RFC 9110,
// section 7.6.1), or change what request it is that was judged.
var framing = set("connection", "content-length", "host", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
	"forwarded", "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url", "x-original-method", "x-host", "x-original-host")

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// pass is one header of a definition's pass_headers:
//
//	entry = name [ "=" alternatives | "!=" alternatives ]
//
// A bare name passes. "=" lets only those elements of a comma-separated value
// pass that one of the alternatives matches; the others are taken out. "!="
// refuses a request that has an element which one of them matches.
type pass struct {
	only, never globs
}

func compilePass(entries []string) (map[string]*pass, error) {
	m := map[string]*pass{}
	for _, e := range entries {
		name, rest, found := strings.Cut(e, "=")
		name, not := strings.CutSuffix(name, "!")
		if name = strings.ToLower(name); !headerName.MatchString(name) || len(e) > 2*maxText || not && !found {
			return nil, fmt.Errorf("%.60q is not a header that may pass (NAME, NAME=a*|b or NAME!=a*|b)", e)
		}
		if framing[name] || credentialName(name) || strings.HasPrefix(name, "proxy-") || strings.HasPrefix(name, "sec-") || strings.HasPrefix(name, "x-forwarded-") {
			return nil, fmt.Errorf("the header %.60q may not pass: it can hold a credential, or change what the request is (leave it out)", name)
		}
		p := m[name]
		if p == nil {
			p = new(pass)
			m[name] = p
		}
		if !found {
			continue
		}
		g, err := compileGlobs(rest)
		if err != nil {
			return nil, fmt.Errorf("header %.60q: %w", e, err)
		}
		if not {
			p.never = append(p.never, g...)
		} else {
			p.only = append(p.only, g...)
		}
	}
	return m, nil
}

// clean returns the headers of h that may leave to the host of these secrets.
func clean(h http.Header, of ...*bound) (http.Header, error) {
	out := make(http.Header, len(h))
	for name, values := range h {
		low := strings.ToLower(name)
		if plain[low] {
			switch low {
			case "te":
				if len(values) == 1 && strings.EqualFold(strings.TrimSpace(values[0]), "trailers") {
					out.Set("Te", "trailers")
				}
			case "content-type", "content-encoding", "content-length", "range", "expect":
				if len(values) > 1 {
					return nil, refuse("the request has %d headers %s", len(values), textproto.CanonicalMIMEHeaderKey(low))
				}
				out[textproto.CanonicalMIMEHeaderKey(low)] = values
			default:
				out[textproto.CanonicalMIMEHeaderKey(low)] = append(out[textproto.CanonicalMIMEHeaderKey(low)], values...)
			}
			continue
		}
		kept, passes := values, false
		for _, b := range of {
			p := b.pass[low]
			if p == nil {
				continue
			}
			var err error
			if kept, err = p.filter(low, kept); err != nil {
				return nil, err
			}
			passes = true
		}
		if passes && len(kept) > 0 {
			out[textproto.CanonicalMIMEHeaderKey(low)] = kept
		}
	}
	return out, nil
}

func (p *pass) filter(name string, values []string) ([]string, error) {
	if p.only == nil && p.never == nil {
		return values, nil
	}
	var kept []string
	for _, v := range values {
		for e := range strings.SplitSeq(v, ",") {
			e = strings.TrimSpace(e)
			switch {
			case e == "":
			case p.never.match(e):
				return nil, refuse("the header %s has %.60q, which this secret's definition refuses (it would have the server fetch or send by itself)", name, e)
			case p.only == nil || p.only.match(e):
				kept = append(kept, e)
			}
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	return []string{strings.Join(kept, ",")}, nil
}
