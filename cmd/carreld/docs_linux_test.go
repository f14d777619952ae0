package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The examples of docs/api.md, one after the other, as a reader would type them.
// Where JSON follows, the answer has at least what it has; "*" is anything.
func TestDocsAPI(t *testing.T) {
	w := newRing2(t)
	w.start()
	b, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	// One shell for all, so that what an example defines is there in the next one.
	// A line of its own between them says that an example is over.
	const mark = "-- over --"
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	type example struct {
		line       int
		text, want string
	}
	var all []example
	for i := 0; i < len(lines); i++ {
		kind := lines[i]
		if kind != "```sh" && kind != "```json" {
			continue
		}
		from := i + 1
		for i++; lines[i] != "```"; i++ {
		}
		text := strings.Join(lines[from:i], "\n")
		if kind == "```json" {
			all[len(all)-1].want = text
			continue
		}
		all = append(all, example{line: from + 1, text: text})
		fmt.Fprintf(&script, "%s\necho; echo '%s'\n", text, mark)
	}
	if len(all) < 15 {
		t.Fatalf("only %d examples", len(all))
	}
	cmd := exec.Command("bash", "-c", script.String())
	cmd.Dir = w.work
	cmd.Env = append(os.Environ(), "PATH="+w.bin+":"+os.Getenv("PATH"), "CARREL_HOME="+w.home, "CARREL_CACHE=", "CARREL_SOCKET="+filepath.Join(w.home, "run", "d.sock"))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	said := strings.Split(string(out), "\n"+mark+"\n")
	if err != nil {
		at := all[min(len(said)-1, len(all)-1)]
		t.Fatalf("docs/api.md:%d: %v\n%s\n%s\n%s", at.line, err, at.text, said[len(said)-1], &errs)
	}
	for i, e := range all {
		if e.want == "" {
			continue
		}
		var want, got any
		if err := json.Unmarshal([]byte(e.want), &want); err != nil {
			t.Fatalf("docs/api.md:%d: %v", e.line, err)
		}
		if err := json.Unmarshal([]byte(said[i]), &got); err != nil {
			t.Errorf("docs/api.md:%d: %v: %s", e.line, err, said[i])
			continue
		}
		if why := lacks(want, got, ""); why != "" {
			t.Errorf("docs/api.md:%d: %s\n%s", e.line, why, said[i])
		}
	}
}

// lacks says what of want is not in got.
func lacks(want, got any, at string) string {
	switch want := want.(type) {
	case map[string]any:
		has, _ := got.(map[string]any)
		for k, v := range want {
			if _, there := has[k]; !there {
				return at + "." + k + " is not there"
			}
			if why := lacks(v, has[k], at+"."+k); why != "" {
				return why
			}
		}
		return ""
	case []any:
		has, _ := got.([]any)
		if len(has) != len(want) {
			return fmt.Sprintf("%s has %d elements, not %d", at, len(has), len(want))
		}
		for i := range want {
			if why := lacks(want[i], has[i], fmt.Sprintf("%s[%d]", at, i)); why != "" {
				return why
			}
		}
		return ""
	}
	if want == "*" && got != nil || want == got {
		return ""
	}
	return fmt.Sprintf("%s is %v, not %v", at, got, want)
}

// TestDocsCatch shows that the comparison above can fail.
func TestDocsCatch(t *testing.T) {
	parse := func(s string) (v any) {
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	want := parse(`{"a": [{"b": 1}], "c": "*"}`)
	var bad []string
	for _, got := range []string{`{}`, `{"a": [], "c": 1}`, `{"a": [{"b": 2}], "c": 1}`, `{"a": [{"b": 1}]}`, `[]`} {
		if lacks(want, parse(got), "") == "" {
			bad = append(bad, got)
		}
	}
	if len(bad) > 0 || lacks(want, parse(`{"a": [{"b": 1, "x": 2}], "c": "y"}`), "") != "" {
		t.Errorf("%q", slices.Clip(bad))
	}
}
