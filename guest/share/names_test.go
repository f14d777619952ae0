package share

import (
	"strings"
	"testing"
)

func TestGoodName(t *testing.T) {
	for name, expected := range map[string]errno{
		"a": ok, "...": hostName([]byte("...")), "..a": ok, "a b": ok, strings.Repeat("n", maxName): ok,
		"": eINVAL, ".": eINVAL, "..": eINVAL, "/": eINVAL, "a/b": eINVAL, "a\x00": eINVAL, strings.Repeat("n", maxName+1): eNAMETOOLONG,
	} {
		if e := goodName([]byte(name)); e != expected {
			t.Errorf("%.20q: %v, want %v", name, e, expected)
		}
	}
}

// S03 on Windows: what its name parser would take for something else.
func TestWindowsName(t *testing.T) {
	for _, bad := range []string{
		`a\b`, `..\x`, "C:", "x:stream", "x::$DATA", "a*", "a?", `a"`, "a<", "a>", "a|", "a\n", "\x01", "a.", "a ", "...",
		"aux", "AUX", "Aux.txt", "con", "nul.tar.gz", "prn", "com1", "COM9.x", "lpt1", "com¹", "CONIN$", "aux .txt", "GIT~1", "git~1", "ENV~1.LOC", "a~12.b",
	} {
		if e := windowsName([]byte(bad)); e != eINVAL {
			t.Errorf("%q: %v", bad, e)
		}
	}
	for _, good := range []string{"a", ".git", "auxiliary", "com", "com10", "lpt", "x.aux", "console", "名前", " a", "a.b.c", "~1", "a~", "a~x", "a.~1~", "file~1.json", "longername~1"} {
		if e := windowsName([]byte(good)); e != ok {
			t.Errorf("%q: %v", good, e)
		}
	}
}
