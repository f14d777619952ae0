package share

import (
	"bytes"
	"strings"
)

const (
	maxName   = 255  // bytes, NAME_MAX
	maxPath   = 4095 // bytes below the root, PATH_MAX without its NUL
	maxTarget = 4095 // bytes of a symbolic link's target
)

// goodName says whether b may be one component of a path. The guest's kernel never sends another, so a bad one is an
// attack or a bug, and is refused and not repaired. Any byte but NUL and '/' is a name on Linux, valid UTF-8 or not; what
// the host's own system adds to that is in hostName.
func goodName(b []byte) errno {
	switch {
	case len(b) == 0, bytes.IndexByte(b, '/') >= 0, bytes.IndexByte(b, 0) >= 0:
		return eINVAL
	case len(b) > maxName:
		return eNAMETOOLONG
	case b[0] == '.' && (len(b) == 1 || len(b) == 2 && b[1] == '.'):
		return eINVAL
	}
	return hostName(b)
}

// oneName takes the rest of a body as one name and its NUL.
func oneName(rest []byte) (string, errno) {
	if len(rest) == 0 || rest[len(rest)-1] != 0 {
		return "", eINVAL
	}
	name := rest[:len(rest)-1]
	if e := goodName(name); e != ok {
		return "", e
	}
	return string(name), ok
}

// twoNames takes the rest of a body as two names, each with its NUL.
func twoNames(rest []byte) (first, second string, e errno) {
	i := bytes.IndexByte(rest, 0)
	if i < 0 {
		return "", "", eINVAL
	}
	if first, e = oneName(rest[:i+1]); e != ok {
		return "", "", e
	}
	second, e = oneName(rest[i+1:])
	return first, second, e
}

// windowsName refuses what Windows would read as something else than one name: another separator, a drive or a stream, a
// device, a name whose end it drops, and characters that it cannot store ("Naming Files, Paths, and Namespaces").
func windowsName(b []byte) errno {
	for _, c := range b {
		if c < ' ' || strings.IndexByte(`\:*?"<>|`, c) >= 0 {
			return eINVAL
		}
	}
	if c := b[len(b)-1]; c == '.' || c == ' ' {
		return eINVAL
	}
	if shortName(string(b)) {
		return eINVAL
	}
	stem, _, _ := strings.Cut(strings.ToUpper(string(b)), ".")
	stem = strings.TrimRight(stem, " ")
	switch stem {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return eINVAL
	}
	if rest, is := strings.CutPrefix(stem, "COM"); is && deviceDigit(rest) {
		return eINVAL
	}
	if rest, is := strings.CutPrefix(stem, "LPT"); is && deviceDigit(rest) {
		return eINVAL
	}
	return ok
}

// shortName says whether Windows may have made name as the 8.3 form of another: GIT~1 of .git. Which one only the host could
// tell, so that no such name is taken; a file that is really called so is not shown. (fsutil 8dot3name has them made per volume.)
func shortName(name string) bool {
	stem, end, _ := strings.Cut(name, ".")
	i := strings.LastIndexByte(stem, '~')
	return i > 0 && len(stem) <= 8 && len(end) <= 3 && i+1 < len(stem) && strings.Trim(stem[i+1:], "0123456789") == ""
}

// deviceDigit knows the digits of COM1 and LPT1, the superscript ones included, which Windows takes for digits too.
func deviceDigit(s string) bool {
	return len(s) == 1 && s[0] >= '0' && s[0] <= '9' || s == "¹" || s == "²" || s == "³"
}
