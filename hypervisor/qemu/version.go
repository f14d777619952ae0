package qemu

import (
	"fmt"
	"regexp"
	"strconv"
)

// Version is QEMU's version as `qemu-system-x86_64 --version` tells it.
type Version struct{ Major, Minor, Micro int }

// MinVersion is the oldest QEMU that this driver was tried with: Debian 12's.
var MinVersion = Version{7, 2, 0}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Less reports whether v is older than o.
func (v Version) Less(o Version) bool {
	if v.Major != o.Major {
		return v.Major < o.Major
	}
	if v.Minor != o.Minor {
		return v.Minor < o.Minor
	}
	return v.Micro < o.Micro
}

var versionLine = regexp.MustCompile(`(?m)^QEMU emulator version ([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})`)

// ParseVersion reads the output of `qemu-system-x86_64 --version`.
func ParseVersion(out string) (Version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return Version{}, fmt.Errorf("no version in what qemu prints: %q", Escape([]byte(out), 80))
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // four digits at most: cannot fail
	}
	return Version{n[0], n[1], n[2]}, nil
}
