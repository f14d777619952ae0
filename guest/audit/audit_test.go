package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

func open(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func add(t testing.TB, l *Log, n int) {
	t.Helper()
	for i := range n {
		if err := l.Append("test.one", map[string]any{"i": i, "host": "example.org"}); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t testing.TB, dir string) Report {
	t.Helper()
	r, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func show(t testing.TB, dir string, last int) (lines []string) {
	t.Helper()
	if err := Show(dir, last, func(b []byte) error { lines = append(lines, string(b)); return nil }); err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestChain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	if r := verify(t, dir); !r.Intact || r.Records != 0 {
		t.Errorf("no log: %+v", r)
	}
	l := open(t, dir)
	add(t, l, 3)
	l.Close()
	l.Close()
	l = open(t, dir) // the chain goes on
	add(t, l, 2)
	if err := l.Sync(); err != nil {
		t.Error(err)
	}
	r := verify(t, dir)
	lines := show(t, dir, 0)
	if !r.Intact || r.Records != 5 || r.First != 1 || len(lines) != 5 || r.Head != hashOf([]byte(lines[4])) {
		t.Errorf("%+v, %d lines", r, len(lines))
	}
	if got := show(t, dir, 2); len(got) != 2 || got[1] != lines[4] {
		t.Errorf("the last two: %q", got)
	}
	for _, kind := range []string{"", "a b", "a\n", "a\"", strings.Repeat("a", 65)} {
		if err := l.Append(kind, nil); err == nil {
			t.Errorf("kind %q was taken", kind)
		}
	}
	for _, f := range []any{"text", 1, []int{1}, func() {}} {
		if err := l.Append("x", f); err == nil {
			t.Errorf("fields %T were taken", f)
		}
	}
	if r := verify(t, dir); r.Records != 5 {
		t.Errorf("after refused records: %+v", r)
	}
	fi, err := os.Stat(filepath.Join(dir, current))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

// TestTampering changes a log in every way that a chain can show.
func TestTampering(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 6)
	l.Close()
	path := filepath.Join(dir, current)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	lines[5] = append(lines[5], '\n')
	join := func(ls ...[]byte) []byte { return bytes.Join(ls, nil) }
	forged := append(compose(4, l.now(), "test.one", hashOf(bytes.TrimSpace(lines[2])), []byte(`{"host":"evil.example"}`)), '\n')
	cases := map[string][]byte{
		"taken out":                join(lines[0], lines[1], lines[3], lines[4], lines[5]),
		"first taken out":          join(lines[1], lines[2], lines[3]),
		"put in twice":             join(lines[0], lines[1], lines[1], lines[2]),
		"changed places":           join(lines[0], lines[2], lines[1], lines[3]),
		"forged, with its own sum": join(lines[0], lines[1], lines[2], forged, lines[4], lines[5]),
		"an empty line":            join(lines[0], []byte("\n"), lines[1]),
		"white space":              join(lines[0], []byte(" "), lines[1]),
		"half a line":              whole[:len(whole)-20],
		"no last newline":          whole[:len(whole)-1],
		"another object":           join(lines[0], []byte("{}\n"), lines[1]),
	}
	for i := range whole { // every single byte
		b := bytes.Clone(whole)
		b[i] ^= 1
		cases[fmt.Sprintf("byte %d", i)] = b
	}
	for what, b := range cases {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, dir); r.Intact || r.Broken == "" {
			t.Errorf("%s: not seen", what)
		}
		show(t, dir, 0)
	}
	// What cannot be seen: an end that is cut off. The head tells.
	os.WriteFile(path, whole, 0o600)
	all := verify(t, dir)
	os.WriteFile(path, join(lines[:4]...), 0o600)
	cut := verify(t, dir)
	if !all.Intact || !cut.Intact || cut.Records != 4 || all.Head == cut.Head {
		t.Errorf("control: %+v, cut %+v", all, cut)
	}
}

// TestLogInjection is P09: whatever a guest says, it is one record, and that is
// printable ASCII.
func TestLogInjection(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	evil := []string{"a\nb", "a\r\n{\"seq\":1}", `","kind":"task.started","x":"`, "\x1b]52;c;AAAA\a", "\u202egnp.exe", "\u2028", "\x00", "\u009b31m", "\xff\xfe", "\U000e0041\u200f", "</script>", strings.Repeat("\\\"", 100)}
	for _, s := range evil {
		if err := l.Append("egress", map[string]any{"host": s, s: "name"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append("egress", wrapperspb.String("not an object")); err == nil {
		t.Error("a message that is no object was taken")
	}
	r := verify(t, dir)
	if !r.Intact || r.Records != int64(len(evil)) {
		t.Errorf("%+v", r)
	}
	for i, line := range show(t, dir, 0) {
		for _, c := range []byte(line) {
			if c < 0x20 || c > 0x7e {
				t.Errorf("%q: byte %#x in the log", evil[i], c)
			}
		}
		var rec struct {
			Kind string
			Data map[string]string
		}
		if err := json.Unmarshal([]byte(line), &rec); err != nil || rec.Kind != "egress" || rec.Data["host"] != strings.ToValidUTF8(evil[i], "\ufffd") && evil[i] != "\xff\xfe" {
			t.Errorf("%q came back as %q, %v", evil[i], rec.Data["host"], err)
		}
	}
}

func TestBoundsAndRedaction(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	for _, s := range []string{strings.Repeat("x", MaxRecord), strings.Repeat("\"", 10*MaxRecord), strings.Repeat("é", MaxRecord), strings.Repeat("\x7f", MaxRecord), strings.Repeat("<", MaxRecord)} {
		if err := l.Append("big", map[string]string{"s": s}); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range show(t, dir, 0) {
		if len(line) > maxLine || !strings.Contains(line, "too_long") {
			t.Errorf("a record of %d bytes: %.80s", len(line), line)
		}
	}
	l.Redact(strings.NewReplacer("hunter2hunter2", "[secret db]").Replace)
	if err := l.Append("egress", map[string]string{"path": "/?p=hunter2hunter2"}); err != nil {
		t.Fatal(err)
	}
	if line := show(t, dir, 1)[0]; strings.Contains(line, "hunter2") || !strings.Contains(line, "[secret db]") {
		t.Errorf("redacted: %s", line)
	}
	l.Redact(strings.NewReplacer(`":"`, "[secret odd]").Replace)
	if err := l.Append("egress", map[string]string{"path": "/"}); err != nil {
		t.Fatal(err)
	}
	if line := show(t, dir, 1)[0]; !strings.Contains(line, `{"withheld":`) {
		t.Errorf("withheld: %s", line)
	}
	if r := verify(t, dir); !r.Intact || r.Records != 7 {
		t.Errorf("%+v", r)
	}
}

// TestTornLine shows that what a crash left half written is taken off, said, and
// that the chain goes on.
func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 2)
	path := filepath.Join(dir, current)
	whole, _ := os.ReadFile(path)
	n := bytes.IndexByte(whole, '\n') + 1
	for cut := n; cut < len(whole)-1; cut += 7 {
		if err := os.WriteFile(path, whole[:cut+1], 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, dir); r.Intact {
			t.Errorf("cut at %d: not seen", cut)
		}
		l := open(t, dir)
		add(t, l, 1)
		l.Close()
		if r := verify(t, dir); !r.Intact || r.Repaired != 1 || r.Records != 3 {
			t.Errorf("cut at %d: %+v", cut, r)
		}
	}
	// Also the first line, and in a log that this Log had appended to before.
	os.WriteFile(path, whole[:10], 0o600)
	add(t, l, 1)
	if r := verify(t, dir); !r.Intact || r.Repaired != 1 || r.Records != 2 {
		t.Errorf("the first line: %+v", r)
	}
	// Another process's half line, when this Log knows the end before it.
	b := open(t, dir)
	add(t, b, 1)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"seq":4,"ti`)
	f.Close()
	add(t, b, 1)
	if r := verify(t, dir); !r.Intact || r.Repaired != 2 || r.Records != 5 {
		t.Errorf("another's half line: %+v", r)
	}
	// What is not torn but wrong is not mended.
	os.WriteFile(path, []byte("{\"seq\":1}\n"), 0o600)
	if err := l.Append("x", nil); err == nil {
		t.Error("a record was appended to a damaged line")
	}
	os.WriteFile(path, bytes.Repeat([]byte("x"), 2*maxLine), 0o600)
	if err := l.Append("x", nil); err == nil {
		t.Error("a record was appended to a line without an end")
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.rotate, l.keep = 2000, 2
	other := open(t, dir) // another process would be no different
	other.rotate, other.keep = 2000, 2
	for range 40 {
		add(t, l, 1)
		add(t, other, 1)
		if r := verify(t, dir); !r.Intact {
			t.Fatalf("%+v", r)
		}
	}
	names, err := l.rotated()
	if err != nil || len(names) != 2 {
		t.Fatalf("%v, %v", names, err)
	}
	r := verify(t, dir)
	if !r.Intact || r.First == 1 || r.Records < 10 {
		t.Errorf("%+v", r)
	}
	if got := show(t, dir, 3); len(got) != 3 {
		t.Errorf("the last three, maybe of two files: %d", len(got))
	}
	// A crash between the rename and the new file.
	os.Rename(filepath.Join(dir, current), filepath.Join(dir, fmt.Sprintf("audit.%d.jsonl", number(names[1])+1)))
	add(t, l, 1)
	if r := verify(t, dir); !r.Intact {
		t.Errorf("after a crash: %+v", r)
	}
	// Removing a file by hand is seen, at the beginning and between.
	names, _ = l.rotated()
	for i, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(dir, name))
		if r := verify(t, dir); r.Intact {
			t.Errorf("file %d was removed: not seen", i)
		}
		os.WriteFile(filepath.Join(dir, name), b, 0o600)
	}
	if r := verify(t, dir); !r.Intact {
		t.Errorf("control: %+v", r)
	}
}

// TestProcesses has several processes append at once, and one of them killed.
func TestProcesses(t *testing.T) {
	// Who looks for the lock now and then seldom finds it free here.
	usual := lockTime
	lockTime = 5 * time.Minute
	defer func() { lockTime = usual }()
	if dir := os.Getenv("CARREL_TEST_AUDIT"); dir != "" {
		l := open(t, dir)
		for i := 0; ; i++ {
			if err := l.Append("child", map[string]any{"i": i, "pad": strings.Repeat("p", i%300)}); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				fmt.Println("appending")
			}
		}
	}
	dir := t.TempDir()
	var kids []*exec.Cmd
	for range 3 {
		kid := exec.Command(os.Args[0], "-test.run=^TestProcesses$", "-test.v")
		kid.Env = append(os.Environ(), "CARREL_TEST_AUDIT="+dir)
		out, err := kid.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := kid.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { kid.Process.Kill(); kid.Wait() })
		b := make([]byte, 0, 200)
		for one := make([]byte, 1); !bytes.Contains(b, []byte("appending")); b = append(b, one[0]) {
			if _, err := out.Read(one); err != nil {
				t.Fatal(err)
			}
		}
		kids = append(kids, kid)
	}
	l := open(t, dir)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 50 {
				if err := l.Append("parent", map[string]int{"i": i}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, kid := range kids {
		kid.Process.Kill()
		kid.Wait()
	}
	add(t, l, 1)
	r := verify(t, dir)
	parents := 0
	for _, line := range show(t, dir, 0) {
		if strings.Contains(line, `"kind":"parent"`) {
			parents++
		}
	}
	if !r.Intact || parents != 200 {
		t.Errorf("%+v, %d records of the parent", r, parents)
	}
}

func FuzzRead(f *testing.F) {
	dir := f.TempDir()
	l, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		l.Append("seed", map[string]int{"i": i})
	}
	l.Close()
	b, err := os.ReadFile(filepath.Join(dir, current))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Add([]byte("\n\n{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, current), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Verify(dir)
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		Show(dir, 0, func(line []byte) error {
			lines++
			if !json.Valid(line) {
				t.Errorf("shown: %q", line)
			}
			return nil
		})
		if r.Intact && int64(lines) != r.Records {
			t.Errorf("%d records and %d lines", r.Records, lines)
		}
		l, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if l.Append("x", nil) == nil && r.Intact {
			if again, err := Verify(dir); err != nil || !again.Intact || again.Records != r.Records+1 {
				t.Errorf("%+v, then %+v, %v", r, again, err)
			}
		}
	})
}
