package agent

import (
	"fmt"
	"strings"
)

// maxName is the longest name in a copy, in bytes: the kernel's PATH_MAX.
const maxName = 4096

// maxDepth is how many folders deep a copy may go.
const maxDepth = 256

// checkName refuses a name that is not a clean path beneath the target.
func checkName(name string) error {
	bad := name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0 || strings.Count(name, "/") >= maxDepth
	for part := range strings.SplitSeq(name, "/") {
		bad = bad || part == "" || part == "." || part == ".."
	}
	if bad {
		return fmt.Errorf("name %.200q is not a clean relative path", name)
	}
	return nil
}
