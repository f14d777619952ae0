package rules

import (
	"strings"
	"testing"
)

// H05: what other file systems take for the same name.
func TestFoldAliases(t *testing.T) {
	for name, aliases := range map[string][]string{
		".git": {
			".GIT", ".Git", ".giT", ".git.", ".git ", ".git . .", ".git::$DATA", ".git:stream", ".git:$I30:$INDEX_ALLOCATION", ".g\u200cit",
			"\u200d.git", ".git\ufeff", ".gi\u2060t", "\u202e.git", ".g\u00adit", ".g\u034fit", ".git\ufe0f", ".gi\U000e0061t", "\uff0egit", ".\uff47it",
		},
		".env":      {".ENV", ".eNv ", ".env.", ".\uff45nv", ".en\u200bv"},
		"hooks":     {"HOOKS", "hoo\u212as", "hook\u017f", "ho\u206aoks", "hooks:x"},
		"caf\u00e9": {"cafe\u0301", "CAF\u00c9", "CAFE\u0301", "cafe\u0301."},
		"strasse":   {"stra\u00dfe", "STRASSE", "stra\u1e9ee", "STRA\u00dfE"},
		"\u03c3":    {"\u03a3", "\u03c2"},
		"a":         {"A", "a.", "a ", "a:b", "a:b.", "\u00aa"},
	} {
		want := Fold(name)
		for _, alias := range aliases {
			if got := Fold(alias); got != want {
				t.Errorf("%+q folds to %+q, and %+q to %+q", alias, got, name, want)
			}
		}
	}
	for _, pair := range [][2]string{ // the control: these are apart
		{".git", "git"}, {".git", ".gitx"}, {".git", ".gi"}, {".git", "..git"}, {".git", " .git"}, {".git", ".g it"}, {".git", ".gi.t"},
		{"a", "b"}, {"...", ".."}, {"", "a"}, {":", "a"}, {":a", "a"},
	} {
		if Fold(pair[0]) == Fold(pair[1]) {
			t.Errorf("%q and %q are one", pair[0], pair[1])
		}
	}
}

func TestFoldKeeps(t *testing.T) {
	for _, name := range []string{"", "a", "main.go", "...", ":x", "a~1", "\xff\xfe", "a\xffb", "名前", "с", "\x01"} {
		if got := Fold(name); got != name {
			t.Errorf("%+q folds to %+q", name, got)
		}
	}
}

func FuzzFold(f *testing.F) {
	for _, s := range []string{".GIT", ".g\u200cit", "a:b", "İ", "ﬃ", "\u0344", "\xc3", "\u3164", "a\u0345\u0301", "ΐ", "\u1fb7", "\u0390\u0301", ". .", "\u2024git", "\uff1a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once := Fold(s)
		if again := Fold(once); again != once {
			t.Errorf("%+q folds to %+q, and that to %+q", s, once, again)
		}
		if got := Fold(strings.ToUpper(strings.ToLower(s))); isASCII(s) && got != once {
			t.Errorf("%+q: upper case folds to %+q, the name to %+q", s, got, once)
		}
		if s != "" && strings.Trim(s, ". ") != "" && s[0] != ':' {
			if got := Fold(s + ". "); got != once && !strings.Contains(s, "\xff") {
				if isASCII(s) {
					t.Errorf("%+q with dots folds to %+q, not to %+q", s, got, once)
				}
			}
		}
	})
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

func TestShort(t *testing.T) {
	for _, c := range []struct{ name, full string }{
		{"git~1", ".git"}, {"git~12", ".git"}, {"gi7eb8~1", ".git"}, {"gitmod~1", ".gitmodules"}, {"vscode~1", ".vscode"}, {"envrc~1", ".envrc"},
		{"mcp~1.jso", ".mcp.json"}, {"creden~1.jso", "credentials.json"}, {"credfe~3.jso", "credentials.json"},
	} {
		if !short(c.name, c.full) {
			t.Errorf("%s may be %s", c.name, c.full)
		}
	}
	for _, c := range []struct{ name, full string }{
		{"git", ".git"}, {"git~", ".git"}, {"git~x", ".git"}, {"~1", ".git"}, {"gitx~1", ".git"}, {"gi~1", ".git"}, {"git~1.txt", ".git"}, {"main~1", ".git"},
		{".envrc.~1~", ".envrc"}, {"creden~1.txt", "credentials.json"}, {"git~1", ""},
	} {
		if short(c.name, c.full) {
			t.Errorf("%s is not %s", c.name, c.full)
		}
	}
}

// Every character, alone and in a name.
func TestFoldOfEveryRune(t *testing.T) {
	for r := rune(1); r < 0x20000; r++ {
		for _, s := range []string{string(r), "a" + string(r) + "b"} {
			if once := Fold(s); Fold(once) != once {
				t.Fatalf("%+q folds to %+q, and that to %+q", s, once, Fold(once))
			}
			if ignorable(r) && Fold("a"+string(r)+"b") != "ab" {
				t.Fatalf("%U is not left out", r)
			}
		}
	}
}
