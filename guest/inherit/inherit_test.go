package inherit

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// patience bounds what is waited for, on a slow machine too.
const patience = 2 * time.Minute

// This program is also the process that is started: it copies what it reads on
// descriptor 3 to 4, and says on 5 whether there is a 6.
func TestMain(m *testing.M) {
	if os.Getenv("INHERIT_TEST") == "" {
		os.Exit(m.Run())
	}
	in, out, word := File(3, "in"), File(4, "out"), File(5, "word")
	if _, err := File(6, "none").Write([]byte("x")); err == nil {
		io.WriteString(word, "there is a sixth\n")
		os.Exit(1)
	}
	io.WriteString(word, "ready\n")
	word.Close()
	io.Copy(out, in)
}

func TestStart(t *testing.T) {
	pipes := make([]*os.File, 6)
	for i := 0; i < len(pipes); i += 2 {
		var err error
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, f := range pipes {
			f.Close()
		}
	}()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "INHERIT_TEST=1")
	cmd.Stderr = os.Stderr
	if err := Start(cmd, pipes[0], pipes[3], pipes[5]); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for _, i := range []int{0, 3, 5} {
		pipes[i].Close()
	}
	if line, err := Line(t.Context(), pipes[4], 100, patience); line != "ready" || err != nil {
		t.Fatalf("%q %v", line, err)
	}
	if _, err := pipes[1].WriteString("over and out"); err != nil {
		t.Fatal(err)
	}
	pipes[1].Close() // the only one of its kind: it was not inherited
	if b, err := io.ReadAll(pipes[2]); err != nil || string(b) != "over and out" {
		t.Fatalf("%q %v", b, err)
	}
}

// A process that says nothing, one that ends and one that talks on are told
// apart.
func TestLine(t *testing.T) {
	for name, tc := range map[string]struct {
		says  string
		ends  bool
		bound time.Duration
		want  string
		is    error
	}{
		"a line":      {"ok\nmore\n", false, patience, "ok", nil},
		"its end":     {"almost", true, patience, "almost", io.EOF},
		"nothing":     {"", true, patience, "", io.EOF},
		"no line":     {"123456789", false, patience, "12345678", io.EOF},
		"not in time": {"", false, 1, "", context.DeadlineExceeded},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, tc.says); err != nil {
			t.Fatal(err)
		}
		if tc.ends {
			w.Close()
		}
		if line, err := Line(t.Context(), r, 8, tc.bound); line != tc.want || !errors.Is(err, tc.is) {
			t.Errorf("%s: %q %v", name, line, err)
		}
		w.Close()
	}
}
