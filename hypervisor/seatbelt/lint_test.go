package seatbelt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLintGoldens(t *testing.T) {
	all, err := filepath.Glob("testdata/*.sb")
	if err != nil || len(all) < 5 {
		t.Fatalf("%d golden profiles, %v", len(all), err)
	}
	for _, g := range all {
		b, err := os.ReadFile(g)
		if err != nil {
			t.Fatal(err)
		}
		if err := Lint(string(b)); err != nil {
			t.Errorf("%s: %v", g, err)
		}
	}
}

// TestLintCatches plants one mistake at a time in a profile that is good.
func TestLintCatches(t *testing.T) {
	b, err := os.ReadFile("testdata/shares.sb")
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	if err := Lint(good); err != nil {
		t.Fatalf("control: %v", err)
	}
	replace := func(old, by string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the golden profile has no %q", old)
		}
		return strings.Replace(good, old, by, 1)
	}
	for name, tc := range map[string]struct{ profile, want string }{
		"empty":                {"", "version"},
		"no version":           {replace("(version 1)", ""), "version"},
		"version 3":            {replace("(version 1)", "(version 3)"), "version"},
		"no default":           {replace("(deny default)", ""), "default"},
		"allow default":        {replace("(deny default)", "(allow default)"), "default"},
		"default later":        {good + "(allow default)\n", "twice"},
		"not closed":           {good + "(allow process-fork", "never closed"},
		"closed twice":         {good + ")", "closes nothing"},
		"open string":          {good + `(allow file-read* (literal "/x))`, "string"},
		"newline in string":    {good + "(allow file-read* (literal \"/Users/u/a\nb\"))", "control character"},
		"escape":               {good + `(allow file-read* (literal "/Users/u/\x41"))`, `neither`},
		"glued":                {good + `(allow file-read* (literal "/Users/u/a""/Users/u/b"))`, "right after"},
		"deep":                 {good + strings.Repeat("(", 99) + strings.Repeat(")", 99), "deep"},
		"import":               {good + `(import "system.sb")`, "neither allow"},
		"define":               {good + `(define x "y")`, "neither allow"},
		"an atom":              {good + `allow`, "neither allow"},
		"operation":            {replace("file-write-setugid", "file-write-setuid"), "not known"},
		"no operation":         {good + `(allow (literal "/Users/u/a"))`, "no operation"},
		"filter":               {replace("(subpath", "(sub-path"), "not known"},
		"empty filter":         {good + `(allow file-read* (subpath))`, "without a value"},
		"modifier":             {good + `(deny file-link (with silence))`, "modifier"},
		"sandbox off":          {good + `(allow process-exec* (literal "/bin/sh") (with no-sandbox))`, "modifier"},
		"all files":            {good + `(allow file-read*)`, "without saying what"},
		"all files quietly":    {good + `(allow file-read* (with no-log))`, "without saying what"},
		"all programs":         {good + `(allow process-exec*)`, "without saying what"},
		"all services":         {good + `(allow mach-lookup)`, "without saying what"},
		"all signals":          {good + `(allow signal)`, "without saying what"},
		"all the network":      {good + `(allow network*)`, "without saying what"},
		"one of two":           {good + `(allow process-fork mach-lookup)`, "without saying what"},
		"root":                 {good + `(allow file-read* (subpath "/"))`, "root"},
		"relative":             {good + `(allow file-read* (subpath "Users"))`, "absolute"},
		"dots":                 {good + `(allow file-read* (subpath "/usr/../Users"))`, "clean"},
		"trailing slash":       {good + `(allow file-read* (subpath "/usr/lib/"))`, "clean"},
		"link":                 {good + `(deny file-read* (subpath "/tmp/x"))`, "link"},
		"data volume":          {good + `(allow file-read* (subpath "/System/Volumes/Data/Users"))`, "data volume"},
		"symbol for string":    {good + `(allow file-read* (subpath usr))`, "not a string"},
		"loose regex":          {good + `(allow file-read* (regex #"ssh"))`, "folder"},
		"open regex":           {good + `(allow file-read* (regex #"^/Users/.*"))`, "folder"},
		"regex for all":        {good + `(allow file-read* (regex #"^/.*/x$"))`, "folder"},
		"regex of two":         {good + `(allow file-read* (regex #"^/Users/u|.*$"))`, "folder"},
		"file filter for mach": {good + `(allow mach-lookup (subpath "/usr/lib"))`, "cannot be filtered"},
		"mach filter for file": {good + `(allow file-read* (global-name "com.apple.logd"))`, "cannot be filtered"},
		"in a combination":     {good + `(allow file-read* (require-all (literal "/Users/u/a") (require-not (target self))))`, "cannot be filtered"},
		"two negated":          {good + `(allow file-read* (require-not (literal "/Users/u/a") (literal "/Users/u/b")))`, "more than one"},
		"every host":           {replace(`"localhost:49200"`, `"*:49200"`), "localhost:PORT"},
		"every port":           {replace(`"localhost:49200"`, `"localhost:*"`), "localhost:PORT"},
		"port 0":               {replace(`"localhost:49200"`, `"localhost:0"`), "localhost:PORT"},
		"port 65536":           {replace(`"localhost:49200"`, `"localhost:65536"`), "localhost:PORT"},
		"port 007":             {replace(`"localhost:49200"`, `"localhost:007"`), "localhost:PORT"},
		"an address":           {replace(`"localhost:49200"`, `"127.0.0.1:49200"`), "localhost:PORT"},
		"udp":                  {replace(`tcp "localhost:49200"`, `udp "localhost:49200"`), "tcp"},
		"unix sockets":         {good + `(allow network-outbound (remote unix-socket))`, "tcp"},
		"short prefix":         {good + `(allow sysctl-read (sysctl-name-prefix "k"))`, "no name"},
		"everybody":            {good + `(allow signal (target anybody))`, "none of"},
		"number":               {good + `(allow file-read* 12)`, "filter should be"},
		"other syntax":         {good + `(allow file-read* '(literal "/Users/u/a"))`, "in a word"},
		"large":                {good + strings.Repeat(" ", maxProfile), "limit"},
		"no UTF-8":             {good + "; \xff", "UTF-8"},
	} {
		if err := Lint(tc.profile); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	for name, addition := range map[string]string{
		"comment":        "; (allow default)",
		"modifier":       `(deny file-link (with no-log))`,
		"combination":    `(allow file-read* (require-all (literal "/Users/u/a") (require-not (vnode-type SYMLINK))))`,
		"several values": `(allow mach-lookup (global-name "com.apple.logd" "com.apple.system.logger"))`,
		"denied whole":   `(deny network*)`,
	} {
		if err := Lint(good + addition); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"":             `""`,
		"/Users/u":     `"/Users/u"`,
		`a"b`:          `"a\"b"`,
		`a\b`:          `"a\\b"`,
		`a\"b`:         `"a\\\"b"`,
		"Müller 🎁":     `"Müller 🎁"`,
		"(allow);'`#|": "\"(allow);'`#|\"",
	} {
		if got, err := quote(s); err != nil || got != want {
			t.Errorf("%q: %s, %v", s, got, err)
		}
	}
}

// FuzzQuote: what is quoted reads as it was.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", `\`, `"`, `\\"`, "a\nb", "\xff", "é", `")(`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := quote(s)
		if err != nil {
			return
		}
		got, err := parse("(" + q + " " + q + ")")
		if len(q) > maxProfile/3 {
			return
		}
		if err != nil || len(got) != 1 || len(got[0].of) != 2 || got[0].of[0].word != s || got[0].of[1].word != s {
			t.Fatalf("%q is read as %v, %v", s, got, err)
		}
	})
}

// FuzzLint: no text makes it fail but by an error, and what passes says what a
// reader of the first two forms believes.
func FuzzLint(f *testing.F) {
	all, err := filepath.Glob("testdata/*.sb")
	if err != nil {
		f.Fatal(err)
	}
	for _, g := range all {
		b, err := os.ReadFile(g)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("(version 1)(deny default)(allow file-read* (require-all (regex #\"^/dev/x$\")))")
	f.Fuzz(func(t *testing.T, s string) {
		if Lint(s) != nil {
			return
		}
		forms, err := parse(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []struct{ op, value string }{{"iokit-open", ""}, {"network-outbound", "*:443"}, {"file-read-data", "relative"}, {"mach-lookup", ""}} {
			if decide(forms, v.op, v.value) {
				t.Errorf("%s %q is allowed by a profile that passes", v.op, v.value)
			}
		}
	})
}
