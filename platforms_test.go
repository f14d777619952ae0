package carrel_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// hostColumns are those of the table of docs/platforms.md, as GOOS calls them.
var hostColumns = []string{"linux", "darwin", "windows"}

// TestPlatformTable holds docs/platforms.md to the tree: no cell says more of a
// host than was proven.
func TestPlatformTable(t *testing.T) {
	b, err := os.ReadFile("docs/platforms.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "<!-- the table:")
	table, _, ok := strings.Cut(table, "<!-- to here -->")
	if !ok {
		t.Fatal("docs/platforms.md has no table between its marks")
	}
	built := map[string][]string{}
	for _, goos := range hostColumns {
		if built[goos], err = builds(goos); err != nil {
			t.Fatal(err)
		}
	}
	rows := 0
	for _, line := range strings.Split(table, "\n") {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| feature") || strings.HasPrefix(line, "|---") {
			continue
		}
		rows++
		for _, bad := range wrongRow(t, line, built) {
			t.Errorf("%s\n\t%s", line, bad)
		}
	}
	if rows < 10 {
		t.Errorf("the table has %d rows", rows)
	}
}

// TestPlatformTableCatches shows that the test above can fail.
func TestPlatformTableCatches(t *testing.T) {
	built := map[string][]string{"linux": {"images"}, "darwin": {"images", "hypervisor/vz"}, "windows": {"images"}}
	const good = "| x | runs in CI `images: TestGet` | type-checked `hypervisor/vz` | not available |"
	if bad := wrongRow(t, good, built); len(bad) > 0 {
		t.Errorf("the control: %q", bad)
	}
	for _, row := range []string{
		"| x | runs in CI `images: TestGet` | not available |",                                         // a column less
		"| x | runs in CI `images: TestNoSuchThing` | not available | not available |",                 // no such test
		"| x | runs in CI | not available | not available |",                                           // no test at all
		"| x | not available | runs in CI `images: TestGet` | not available |",                         // CI has no Mac
		"| x | not available | run against a fake | not available |",                                   // by which test
		"| x | not available | not available | run against a fake `scripts/test-wine: No such part` |", // of a script
		"| x | not available | not available | run against a fake `scripts/nothing: A guest` |",        // no script
		"| x | not available | type-checked `images` | not available |",                                // not one of those
		"| x | type-checked `hypervisor/vz` | not available | not available |",                         // for a Mac only
		"| x | not available | not available | compiled `hypervisor/vz` |",                             // not for that host
		"| x | not available | not available | compiled |",                                             // what
		"| x | works | not available | not available |",                                                // no such word
		"| x | runs in CI `images: TestGet`, and on my machine | not available | not available |",      // a claim beside it
	} {
		if len(wrongRow(t, row, built)) == 0 {
			t.Errorf("%s: was not found", row)
		}
	}
}

var named = regexp.MustCompile("`([^`]+)`")

// wrongRow says what a row claims without ground. built are the packages that are
// compiled for each host.
func wrongRow(t *testing.T, line string, built map[string][]string) (bad []string) {
	t.Helper()
	cells := strings.Split(strings.Trim(line, "|"), "|")
	if len(cells) != 1+len(hostColumns) {
		return []string{fmt.Sprintf("%d columns", len(cells))}
	}
	for i, goos := range hostColumns {
		cell := strings.TrimSpace(cells[i+1])
		word, rest, _ := strings.Cut(cell, " `")
		if rest != "" {
			rest = "`" + rest
		}
		var names []string
		for _, m := range named.FindAllStringSubmatch(rest, -1) {
			names = append(names, m[1])
		}
		say := func(format string, args ...any) { bad = append(bad, goos+": "+fmt.Sprintf(format, args...)) }
		if left := strings.Trim(named.ReplaceAllString(rest, ""), ", "); left != "" {
			say("%q is no name", left)
		}
		if word != "not available" && len(names) == 0 {
			say("%q names nothing", cell)
		}
		for _, name := range names {
			switch word {
			case "runs in CI", "run against a fake":
				script, words, _ := strings.Cut(name, ": ")
				if b, err := os.ReadFile(script); strings.HasPrefix(script, "scripts/") {
					if err != nil || words == "" || !strings.Contains(string(b), "\n# "+words) {
						say("%s has no part of these words: %q (%v)", script, words, err)
					}
				} else if why := missing(t, name); why != "" {
					say("%s: %s", name, why)
				}
			case "type-checked":
				if goos != "darwin" || !slices.ContainsFunc(forMac, func(p string) bool { return match(strings.TrimPrefix(p, "./"), name) }) {
					say("%s is not among what is type-checked", name)
				}
			case "compiled":
				if !slices.Contains(built[goos], name) {
					say("%s is not compiled for it", name)
				}
			}
		}
		switch word {
		case "runs in CI":
			if goos != "linux" {
				say("CI has no such host")
			}
		case "run against a fake", "type-checked", "compiled", "not available":
		default:
			say("%q is none of the words", word)
		}
	}
	return bad
}

// builds names our packages that have files for a host, without cgo.
func builds(goos string) (pkgs []string, err error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,GoFiles", "./...")
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			GoFiles    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, err
		}
		if len(p.GoFiles) > 0 {
			pkgs = append(pkgs, strings.TrimPrefix(p.ImportPath, module))
		}
	}
}
