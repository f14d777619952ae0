package machine

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestWords(t *testing.T) {
	for line, want := range map[string]struct{ powerOff, scratch bool }{
		"":                                    {},
		"quiet " + PowerOffWord:               {powerOff: true},
		PowerOffWord + "x carrel.end=":        {},
		"quiet carrel.scratch=/dev/vdb panic": {scratch: true},
		"carrel.scratches=1 xcarrel.scratch=": {},
	} {
		s := &Start{words: strings.Fields(line)}
		if got := s.Has(PowerOffWord); got != want.powerOff {
			t.Errorf("%q: power-off: %t", line, got)
		}
		if got := s.Scratch(); got != want.scratch {
			t.Errorf("%q: scratch disk: %t", line, got)
		}
	}
}

// TestOnlyInit: what a test's process is must not have begun to mount.
func TestOnlyInit(t *testing.T) {
	if started != nil {
		t.Error("this process is no machine's first, and has begun to make a machine's file system")
	}
}

// TestImports: what this package imports is set up before it. Others than these
// come after much that takes long, in the order of their names (the linker's
// inittask.go), and so would this package.
func TestImports(t *testing.T) {
	early := []string{"bytes", "errors", "math", "os", "runtime", "slices", "strconv", "syscall", "time", "unsafe"}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../uevent/*.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, name := range append(files, more...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			seen++
			path, _ := strconv.Unquote(i.Path.Value)
			if !slices.Contains(early, path) && path != "github.com/carrel-vm/carrel/agent/uevent" {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
	if seen == 0 {
		t.Error("no imports were found")
	}
}
