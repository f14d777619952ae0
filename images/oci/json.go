package oci

import (
	"encoding/json"
	"fmt"
)

// maxValues bounds the values of one document. A manifest of 512 layers has some 3,000, an index of 1,000 manifests, each with a platform and
// some annotations, 20,000. 4 MiB that hold nothing else would be 1.4 million empty descriptors, of which json.Unmarshal makes half a
// gigabyte in the daemon.
const maxValues = 64 << 10

// decode reads a document from elsewhere. What it may become in memory is bounded before anything is made of it: each value of
// an object or an array, of however few bytes, is followed by a comma or by the end of what it is in.
func decode(raw []byte, to any) error {
	values, text := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case text && c == '\\':
			i++ // whatever it is, it does not end the text
		case c == '"':
			text = !text
		case !text && (c == ',' || c == '{' || c == '['):
			values++
		}
	}
	if values > maxValues {
		return fmt.Errorf("%w: a document of %d values", ErrTooBig, values)
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}
