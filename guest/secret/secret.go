// Package secret keeps credentials on the host, and says where each may go and
// how it is added to a request. No value leaves it but into a request's header.
//
// It has three parts that know little of each other: definitions (Complete,
// Rules), the store (Open), and the edge (NewEdge), which runs in the egress
// process and is the only one that sees requests.
package secret

import "fmt"

// Bounds.
const (
	// MaxValue is the most that a credential may have, in bytes. Keychains have
	// lower limits of their own: Windows 2,560 bytes, macOS about 3,000.
	MaxValue = 64 << 10
	// minValue is the least: shorter values cannot be told from other text, so
	// they could not be kept out of logs.
	minValue = 8
	// MaxSecrets bounds the store, and one guest's edge.
	MaxSecrets = 256
	maxName    = 31
	maxList    = 64 // elements of each list of a definition
	maxText    = 512
)

// Refused says why a request may not leave. Its text is fit to be shown: what
// the guest wrote is quoted in it and bounded, and it never holds a value.
type Refused struct{ Reason string }

func (r *Refused) Error() string { return r.Reason }

func refuse(format string, v ...any) error { return &Refused{Reason: fmt.Sprintf(format, v...)} }

// CheckName says what is wrong with a secret's name.
func CheckName(name string) error {
	ok := len(name) >= 1 && len(name) <= maxName && name[0] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
	}
	if !ok {
		return fmt.Errorf("%.40q is not a secret's name (use lower-case letters, digits and dashes, at most %d, not beginning with a dash)", name, maxName)
	}
	return nil
}

// CheckValue says what is wrong with a credential, without repeating any of it.
func CheckValue(v []byte) error {
	switch {
	case len(v) < minValue:
		return fmt.Errorf("the value has %d bytes: fewer than %d cannot be told from other text and kept out of logs (use a longer credential)", len(v), minValue)
	case len(v) > MaxValue:
		return fmt.Errorf("the value has %d bytes, and at most %d are possible (give the credential itself, not a file that holds it)", len(v), MaxValue)
	}
	for i, c := range v {
		// RFC 9110, section 5.5: a field's value is visible characters, spaces
		// and bytes above 0x7f. CR, LF and NUL would let it write headers.
		if c < 0x20 || c == 0x7f {
			return fmt.Errorf("the value has a control character at byte %d (a newline at its end? give one line)", i)
		}
	}
	if v[0] == ' ' || v[len(v)-1] == ' ' {
		return fmt.Errorf("the value begins or ends with a space (give the credential alone)")
	}
	return nil
}
