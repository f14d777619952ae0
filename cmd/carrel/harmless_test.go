package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/carrel-vm/carrel/guest/api"
)

// P08: what a terminal would obey is shown instead.
func TestHarmless(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"text", "héllo wörld 日本 🎉\n\ttab\n", "héllo wörld 日本 🎉\n\ttab\n"},
		{"joined emoji", "👩‍💻", "👩‍💻"},
		{"clipboard, OSC 52", "\x1b]52;c;ZXZpbA==\x07", `\x1b]52;c;ZXZpbA==\x07`},
		{"hyperlink, OSC 8", "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\", `\x1b]8;;http://evil\x1b\x\x1b]8;;\x1b\`},
		{"title", "\x1b]0;root@host\x07", `\x1b]0;root@host\x07`},
		{"DECRQSS", "\x1bP$q\"p\x1b\\", `\x1bP$q"p\x1b\`},
		{"colour", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
		{"CSI as one character", "\u009b31m", `\u009b31m`},
		{"CSI as one byte", "\x9b31m", `\x9b31m`},
		{"carriage return", "100%\rmalice\n", `100%\rmalice` + "\n"},
		{"Windows' line end", "a\r\nb\r\n", "a\nb\n"},
		{"two carriage returns", "a\r\r\n", `a\r` + "\n"},
		{"carriage return at the end", "a\r", `a\r`},
		{"backspace, bell, delete", "a\bb\ac\x7f", `a\x08b\x07c\x7f`},
		{"NUL", "a\x00b", `a\x00b`},
		{"bidi", "a\u202eb\u2066c\u200fd\u061ce", `a\u202eb\u2066c\u200fd\u061ce`},
		{"tags", "a\U000e0041b", `a\U000e0041b`},
		{"separators", "a\u2028b\ufeffc", `a\u2028b\ufeffc`},
		{"not UTF-8", "a\xff\xc0\xafb", `a\xff\xc0\xafb`},
		{"surrogate", "\xed\xa0\x80", `\xed\xa0\x80`},
		{"cut character", "a\xe6\x97", `a\xe6\x97`},
		{"empty", "", ""},
	} {
		for _, step := range []int{1, 2, 3, 1 << 20} {
			if got := passed(t, tc.in, step); got != tc.want {
				t.Errorf("%s, %d bytes at once: %q, want %q", tc.name, step, got, tc.want)
			}
		}
	}
}

// passed writes in to a harmless writer, so many bytes at once.
func passed(t *testing.T, in string, step int) string {
	t.Helper()
	var b bytes.Buffer
	h := &harmless{w: &b}
	for p := []byte(in); len(p) > 0; {
		n := min(step, len(p))
		if m, err := h.Write(p[:n]); m != n || err != nil {
			t.Fatalf("Write: %d, %v", m, err)
		}
		p = p[n:]
	}
	if err := h.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func FuzzHarmless(f *testing.F) {
	for _, s := range []string{"a\r\n\x1b[0m", "\xe6\x97\xa5\xe6", "\r", "\u202e"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		got := passed(t, string(in), max(step, 1))
		if whole := passed(t, string(in), len(in)+1); got != whole {
			t.Errorf("in pieces of %d: %q, at once %q", step, got, whole)
		}
		check := func(s string, lines bool) {
			if !utf8.ValidString(s) {
				t.Errorf("%q is not UTF-8", s)
			}
			for _, r := range s {
				if dangerous(r) && !(lines && (r == '\n' || r == '\t')) {
					t.Errorf("%q has %U", s, r)
				}
			}
		}
		check(got, true)
		check(safe(string(in)), false)
	})
}

// Our own messages are one line each, whatever they repeat.
func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"guest dev":                         "guest dev",
		"a\ncarrel: guest is safe":          `a\ncarrel: guest is safe`,
		"a\tb\r":                            `a\tb\r`,
		"\x1b]0;x\x07":                      `\x1b]0;x\x07`,
		"\u202egnp.exe":                     `\u202egnp.exe`,
		`{"level":"INFO"}` + "\n" + `{"x"}`: `{"level":"INFO"}\n{"x"}`,
	} {
		if got := safe(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Names that a guest chose stay data in tables and in JSON.
func TestListingsAreHarmless(t *testing.T) {
	evil := "x\x1b]0;t\x07\n\u202e\u009b2J"
	g := &api.Guest{
		Name: evil, Cause: evil, Driver: evil, Accelerator: evil, StateDir: evil, HypervisorArgs: []string{evil},
		Spec:  &api.GuestSpec{Image: evil, Shares: []*api.Share{{Path: evil, GuestPath: evil}}},
		Tasks: []*api.Task{{Id: evil, State: api.TaskState_TASK_STATE_RUNNING, Spec: &api.TaskSpec{Argv: []string{evil}}, Ending: &api.Ending{Cause: evil}}},
	}
	var b bytes.Buffer
	if err := guestTable(&b, []*api.Guest{g}, g.Created.AsTime()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n"); n != 2 {
		t.Errorf("a table of %d lines, want 2", n)
	}
	if err := guestReport(&b, 80, g, g.Created.AsTime()); err != nil {
		t.Fatal(err)
	}
	if err := imageTable(&b, []*api.Image{{Name: evil, KernelVersion: evil, Arch: evil}}); err != nil {
		t.Fatal(err)
	}
	line, err := jsonLine(g)
	if err != nil {
		t.Fatal(err)
	}
	b.WriteString(line)
	for _, r := range b.String() {
		if r != '\n' && dangerous(r) {
			t.Fatalf("%U in %q", r, b.String())
		}
	}
	var back struct{ Name string }
	if err := json.Unmarshal([]byte(line), &back); err != nil || back.Name != evil {
		t.Fatalf("JSON gives %q back, %v", back.Name, err)
	}
}
