package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\r\n"

// fakeQEMU answers each line that it reads with what answer returns.
func fakeQEMU(t *testing.T, first string, answer func(line string) string) *qmp {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		if _, err := io.WriteString(theirs, first); err != nil {
			return
		}
		for r := bufio.NewScanner(theirs); r.Scan(); {
			if _, err := io.WriteString(theirs, answer(r.Text())); err != nil {
				return
			}
		}
	}()
	q := newQMP(ours)
	t.Cleanup(func() {
		q.Close()
		<-done
		goleak.VerifyNone(t)
	})
	return q
}

// obliging answers every command.
func obliging(line string) string {
	id := line[strings.LastIndex(line, ":")+1 : len(line)-1]
	if strings.Contains(line, "query-status") {
		return `{"return": {"status": "paused", "singlestep": false, "running": false}, "id": ` + id + "}\r\n"
	}
	return `{"return": {}, "id": ` + id + "}\r\n"
}

func TestQMP(t *testing.T) {
	event := `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\r\n"
	q := fakeQEMU(t, greeting, func(line string) string { return event + obliging(line) })
	ctx := t.Context()
	v, err := q.Greet(ctx)
	if err != nil || v != (Version{7, 2, 22}) {
		t.Fatalf("greeting: %v, %v", v, err)
	}
	if s, err := q.Status(ctx); err != nil || s != "paused" {
		t.Errorf("status %q, %v", s, err)
	}
	if _, err := q.Do(ctx, "stop"); err != nil {
		t.Error(err)
	}
	if e := q.Events(); e.Shutdown != "guest-reset" || e.Panicked {
		t.Errorf("events %+v", e)
	}
}

func TestQMPRefusal(t *testing.T) {
	q := fakeQEMU(t, greeting, func(line string) string {
		if !strings.Contains(line, `"cont"`) {
			return obliging(line)
		}
		id := line[strings.LastIndex(line, ":")+1 : len(line)-1]
		return `{"id": ` + id + `, "error": {"class": "GenericError", "desc": "not ` + `\u001b[31m` + ` now"}}` + "\n"
	})
	if _, err := q.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Do(t.Context(), "cont"); err == nil || !strings.Contains(err.Error(), `not \x1b[31m now`) {
		t.Errorf("refusal: %v", err)
	}
	if _, err := q.Do(t.Context(), "stop"); err != nil {
		t.Errorf("a refusal ended the monitor: %v", err)
	}
}

// TestQMPHostile: what a QEMU that was taken over may send ends the monitor
// with an error and nothing else.
func TestQMPHostile(t *testing.T) {
	say := func(s string) func(string) string { return func(string) string { return s } }
	for name, tc := range map[string]struct {
		first  string
		answer func(string) string
	}{
		"no greeting":     {`{"return": {}}` + "\n", obliging},
		"garbage":         {"\x00\xff garbage\n", obliging},
		"an array":        {"[]\n", obliging},
		"null":            {"null\n", obliging},
		"endless line":    {strings.Repeat("x", qmpMaxLine+2), obliging},
		"wrong id":        {greeting, say(`{"return": {}, "id": 77}` + "\n")},
		"no id":           {greeting, say(`{"return": {}}` + "\n")},
		"text id":         {greeting, say(`{"return": {}, "id": "1"}` + "\n")},
		"return and err":  {greeting, say(`{"return": {}, "error": {}, "id": 1}` + "\n")},
		"second greeting": {greeting, say(greeting)},
		"nothing":         {"", obliging},
	} {
		t.Run(name, func(t *testing.T) {
			q := fakeQEMU(t, tc.first, tc.answer)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := q.Greet(ctx); err == nil {
				t.Error("taken for a monitor")
			}
		})
	}
}

func TestQMPSilence(t *testing.T) {
	ctx, giveUp := context.WithCancelCause(t.Context())
	q := fakeQEMU(t, greeting, func(line string) string {
		if strings.Contains(line, "stop") {
			giveUp(errors.New("too late"))
			return ""
		}
		return obliging(line)
	})
	if _, err := q.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Do(ctx, "stop"); err == nil || err.Error() != "too late" {
		t.Errorf("no answer: %v", err)
	}
	if _, err := q.Do(t.Context(), "cont"); err == nil {
		t.Error("a command was answered before the one that came before it")
	}
}

// A QEMU that has much to write before its guest stands still answers late, and is
// told to go on meanwhile: each answer is that of its own command, whether it comes
// when nobody waits or when the next one does.
func TestQMPLate(t *testing.T) {
	late := func(line string) string {
		id := line[strings.LastIndex(line, ":")+1 : len(line)-1]
		return `{"id": ` + id + `, "error": {"class": "GenericError", "desc": "the disk is full"}}` + "\r\n"
	}
	for name, alone := range map[string]bool{"when nobody waits": true, "with the next one": false} {
		t.Run(name, func(t *testing.T) {
			goesOn := make(chan struct{})
			owed := ""
			var giveUp context.CancelCauseFunc
			q := fakeQEMU(t, greeting, func(line string) string {
				switch {
				case !strings.Contains(line, `"stop"`):
					said := owed + obliging(line)
					owed = ""
					return said
				case alone:
					giveUp(errors.New("too late"))
					<-goesOn
					return late(line)
				default:
					giveUp(errors.New("too late"))
					owed = late(line)
					return ""
				}
			})
			if _, err := q.Greet(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				var ctx context.Context
				ctx, giveUp = context.WithCancelCause(t.Context())
				_, err := q.Do(ctx, "stop")
				giveUp(nil)
				if alone {
					goesOn <- struct{}{}
				}
				if err == nil || err.Error() != "too late" {
					t.Fatalf("no answer: %v", err)
				}
				if s, err := q.Status(t.Context()); err != nil || s != "paused" {
					t.Fatalf("the command after it: %q, %v", s, err)
				}
			}
		})
	}
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return": {}, "id": 1}`))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"reason": 1}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseQMP(line)
		if err == nil && m.Event == "" && m.Greeting == nil && m.Error == nil && m.Return == nil {
			t.Errorf("%q: a message of no kind", line)
		}
	})
}

func ExampleVersion_String() {
	fmt.Println(Version{7, 2, 22})
	// Output: 7.2.22
}
