package selftest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	good := Check{Name: "good", Need: "all \"is\" well", Try: func() (string, error) { return "version 6", nil }}
	bad := Check{Name: "bad", Need: "it", Try: func() (string, error) { return "", errors.New("two\nlines \x1b[31m\\") }}
	elsewhere := Check{Name: "elsewhere", Arch: "none", Try: func() (string, error) { panic("tried") }}
	for _, tc := range []struct {
		checks []Check
		table  string
		err    string
	}{
		{[]Check{good, elsewhere}, "good  ok      version 6\n" + Passed + "\n", ""},
		{[]Check{good, bad}, "good  ok      version 6\nbad   FAILED  two lines [31m\\\n" + Failed + " bad\n", "bad"},
		{nil, Failed + "\n", "nothing"},
	} {
		results := Run(tc.checks)
		var b strings.Builder
		if err := Print(&b, results); err != nil || b.String() != tc.table {
			t.Errorf("%v\n%s\nexpected\n%s", err, b.String(), tc.table)
		}
		if err := Err(results); (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%v, expected %q", err, tc.err)
		}
		b.Reset()
		var all []Result
		if err := errors.Join(PrintJSON(&b, results), json.Unmarshal([]byte(b.String()), &all)); err != nil || len(all) != len(results) {
			t.Errorf("%v\n%s", err, b.String())
		}
		for i, r := range all {
			want := results[i]
			want.Detail = oneLine(want.Detail)
			if r != want {
				t.Errorf("%+v, expected %+v", r, want)
			}
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range All() {
		if c.Name == "" || strings.ContainsAny(c.Name, " \n") || c.Need == "" || c.Try == nil || seen[c.Name] {
			t.Errorf("%q is no name, not the only one, or says nothing of its need", c.Name)
		}
		seen[c.Name] = true
	}
	if len(seen) < 40 {
		t.Errorf("%d checks", len(seen))
	}
}

func TestFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "words")
	if err := os.WriteFile(file, []byte("nodev\ttmpfs\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		try  func() (string, error)
		good bool
	}{
		"there":         {exists(file), true},
		"not there":     {exists(file + "x"), false},
		"absent":        {absent(file + "x"), true},
		"not absent":    {absent(file), false},
		"listed":        {func() (string, error) { return "", listed(file, "tmpfs") }, true},
		"part of it":    {func() (string, error) { return "", listed(file, "tmp") }, false},
		"held":          {holds(file, "0", "nodev\ttmpfs\n1"), true},
		"not held":      {holds(file, "1"), false},
		"nobody has it": {filesystem("carrelfs"), false},
		"all have it":   {filesystem("proc"), true},
		"none has it":   {noFilesystem("carrelfs"), true},
		"it is there":   {noFilesystem("proc"), false},
	} {
		if _, err := c.try(); (err == nil) != c.good {
			t.Errorf("%s: %v", what, err)
		}
	}
}
