package policy

import (
	"net/url"
	"path"
	"strings"
)

// readings are the ways in which servers are known to read a path: each is a
// decoding, with or without parameters, cleaned or not. It shares no code with
// what it checks.
func readings(p string) (out []string) {
	decoded, err := url.PathUnescape(p)
	if err != nil {
		return []string{p}
	}
	twice, err := url.PathUnescape(decoded)
	if err != nil {
		twice = decoded
	}
	for _, q := range []string{decoded, twice} {
		q = strings.ReplaceAll(q, `\`, "/")
		bare := strings.Split(q, "/")
		for i, s := range bare {
			bare[i], _, _ = strings.Cut(s, ";")
		}
		for _, r := range []string{q, strings.Join(bare, "/")} {
			clean := path.Clean(r)
			if strings.HasSuffix(r, "/") && clean != "/" {
				clean += "/"
			}
			out = append(out, r, clean)
		}
	}
	return out
}
