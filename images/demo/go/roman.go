// Package roman writes and reads Roman numerals from 1 to 3999.
package roman

import (
	"fmt"
	"strings"
)

var steps = []struct {
	value int
	text  string
}{
	{1000, "M"}, {900, "CM"}, {500, "D"}, {400, "CD"}, {100, "C"}, {90, "XC"}, {50, "L"},
	{40, "XL"}, {10, "X"}, {9, "IX"}, {5, "V"}, {4, "IV"}, {1, "I"},
}

// Format writes n as a numeral.
func Format(n int) (string, error) {
	if n < 1 || n > 3999 {
		return "", fmt.Errorf("roman: %d is not from 1 to 3999", n)
	}
	var b strings.Builder
	for _, s := range steps {
		for ; n >= s.value; n -= s.value {
			b.WriteString(s.text)
		}
	}
	return b.String(), nil
}

// Parse reads a numeral in its canonical form.
func Parse(s string) (int, error) {
	rest, n := s, 0
	for _, st := range steps {
		for strings.HasPrefix(rest, st.text) && n < 4000 {
			n, rest = n+st.value, rest[len(st.text):]
		}
	}
	if again, err := Format(n); err != nil || rest != "" || again != s {
		return 0, fmt.Errorf("roman: %q is not a numeral", s)
	}
	return n, nil
}
