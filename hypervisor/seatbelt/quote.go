package seatbelt

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// maxPath is the longest path of macOS, in bytes without its NUL (PATH_MAX,
// sys/syslimits.h).
const maxPath = 1023

// quote writes s as a string of a profile. What the interpreter of the profile
// language would read as an escape is escaped; other bytes of UTF-8 stand for
// themselves. What has control characters is refused rather than escaped: of
// Scheme's escapes for them nobody here has seen how Apple reads them.
func quote(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errors.New("it is not UTF-8")
	}
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return "", fmt.Errorf("it holds the control character %U", r)
		}
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`, nil
}

// links are the folders of macOS that are links into /private. The kernel
// compares the path that a file really has, so a rule about one of these would
// never match: harmless where it allows, a hole where it denies.
var links = []string{"/etc", "/tmp", "/var"}

// dataVolume is the other name of what users have; the kernel never calls a file
// so that has a name without it.
const dataVolume = "/System/Volumes/Data"

// checkPath refuses what cannot stand in a rule about a file.
func checkPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return errors.New("it is not absolute")
	case len(p) > maxPath:
		return fmt.Errorf("it has %d bytes, %d is the limit", len(p), maxPath)
	case p == "/":
		return errors.New("it is the root of all files")
	case path.Clean(p) != p:
		return fmt.Errorf("it is not clean, as %s is", path.Clean(p))
	case within(p, dataVolume):
		return errors.New("it is another name of the data volume (leave out " + dataVolume + ")")
	}
	for _, l := range links {
		if within(p, l) {
			return fmt.Errorf("%s is a link (it is /private%s)", l, p)
		}
	}
	_, err := quote(p)
	return err
}

// within says whether p is dir or lies beneath it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// ancestors are the folders above p, from the root down.
func ancestors(p string) []string {
	all := []string{"/"}
	for i := 1; i < len(p); i++ {
		if p[i] == '/' {
			all = append(all, p[:i])
		}
	}
	return all
}
