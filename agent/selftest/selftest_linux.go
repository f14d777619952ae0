package selftest

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
)

// The last line of a self-test on a machine's console: Passed, or Failed and the names of what is wrong.
const (
	Passed = "carrel-selftest-ok"
	Failed = "carrel-selftest-failed:"
)

// Check is one feature.
type Check struct {
	// Name is what a failure is called: "landlock".
	Name string
	// Need says what would not work without it, or why it must be absent.
	Need string
	// Arch is the only architecture that has it, as GOARCH; empty: all.
	Arch string
	// Try uses the feature. Its words are a detail for the reader, as a version.
	Try func() (string, error)
}

// Result is how one check ended.
type Result struct {
	Name   string
	OK     bool
	Detail string
	Need   string
}

// Run tries the checks in order.
func Run(checks []Check) []Result {
	var all []Result
	for _, c := range checks {
		if c.Arch != "" && c.Arch != runtime.GOARCH {
			continue
		}
		r := Result{Name: c.Name, Need: c.Need}
		detail, err := c.Try()
		if r.OK, r.Detail = err == nil, detail; err != nil {
			r.Detail = err.Error()
		}
		all = append(all, r)
	}
	return all
}

// Err names the checks that failed; nil if none did.
func Err(results []Result) error {
	var failed []string
	for _, r := range results {
		if !r.OK {
			failed = append(failed, r.Name)
		}
	}
	switch {
	case len(results) == 0:
		return errors.New("nothing was tried")
	case len(failed) > 0:
		return fmt.Errorf("the kernel is not the one that a guest needs: %s", strings.Join(failed, " "))
	}
	return nil
}

// Print writes a table, and then the mark that says how it ended.
func Print(w io.Writer, results []Result) error {
	width := 0
	for _, r := range results {
		width = max(width, len(r.Name))
	}
	var b strings.Builder
	mark := Passed
	if err := Err(results); err != nil {
		mark = Failed
	}
	for _, r := range results {
		word := "ok"
		if !r.OK {
			word = "FAILED"
			mark += " " + r.Name
		}
		line := fmt.Sprintf("%-*s  %-6s  %s", width, r.Name, word, oneLine(r.Detail))
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, b.String()+mark+"\n")
	return err
}

// PrintJSON writes an array of objects. It is written out because the agent has no other use for encoding/json,
// which is a fortieth of its size.
func PrintJSON(w io.Writer, results []Result) error {
	var b strings.Builder
	b.WriteString("[")
	for i, r := range results {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n  {\"name\": %s, \"ok\": %t, \"detail\": %s, \"need\": %s}", quote(r.Name), r.OK, quote(r.Detail), quote(r.Need))
	}
	b.WriteString("\n]\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// quote makes a JSON string. What is shown is plain text: control characters become spaces.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(oneLine(s)) + `"`
}

// oneLine makes every run of white space and control characters a space.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
}
