package policy

import "strings"

// maxReference bounds a reference, in bytes: 255 of a repository and 128 of a
// tag are what registries take, 71 a digest.
const maxReference = 512

// ValidReference says whether s can be a reference to an image of a registry:
// python:3.13, ghcr.io/owner/name, NAME@sha256:DIGEST, or sha256:DIGEST for one
// that is here. What it means is the store's to say; here it counts that it is no
// path, no flag, and harmless to print.
func ValidReference(s string) bool {
	if len(s) < 1 || len(s) > maxReference || !strings.ContainsAny(s, "/:@") || strings.ContainsAny(s[:1], "/:@.-_") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-/:@", rune(c)) {
			return false
		}
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}
