package policy

import "strings"

// drivePath is where a Windows folder appears in a guest: C:\src as /mnt/c/src,
// \\server\share\src as /mnt/unc/server/share/src. Prefixes that ask Windows for
// long paths say nothing about the folder.
func drivePath(p string) string {
	p = strings.ReplaceAll(p, "/", `\`)
	unc := ""
	switch {
	case strings.HasPrefix(strings.ToUpper(p), `\\?\UNC\`):
		unc = p[len(`\\?\UNC\`):]
	case strings.HasPrefix(p, `\\?\`), strings.HasPrefix(p, `\\.\`):
		p = p[4:]
	case strings.HasPrefix(p, `\\`):
		unc = p[2:]
	}
	slashes := func(s string) string { return strings.Trim(strings.ReplaceAll(s, `\`, "/"), "/") }
	switch {
	case unc != "":
		return "/mnt/unc/" + slashes(unc)
	case len(p) >= 2 && p[1] == ':':
		return strings.TrimSuffix("/mnt/"+strings.ToLower(p[:1])+"/"+slashes(p[2:]), "/")
	}
	return "/" + slashes(p)
}
