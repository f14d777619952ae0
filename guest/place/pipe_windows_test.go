package place

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Microsoft/go-winio"
)

// answer takes one connection and sends back the first word of it.
func answer(ln net.Listener) {
	c, err := ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	var b [5]byte
	if _, err := io.ReadFull(c, b[:]); err == nil {
		c.Write(b[:])
	}
}

func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	if _, err := Dial(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("there is no pipe: %v", err)
	}
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	go answer(ln)
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var b [5]byte
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "hello" {
		t.Fatalf("%q %v", b[:], err)
	}
	c.Close()
	name, err := readName(path)
	if err != nil {
		t.Fatal(err)
	}
	// That a name can be made only once is not tried: Wine 8 lets it be made again.
	if err := errors.Join(ln.Close(), ln.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note is left: %v", err)
	}
	// What a killed process leaves is a note without a pipe.
	if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Dial(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("nobody listens: %v %v", c, err)
	}
	if ln, err = Listen(path); err != nil {
		t.Fatalf("in a killed one's place: %v", err)
	}
	ln.Close()
}

// A pipe that is not this user's is told nothing. The group of administrators
// may be given as an owner by its members, whom Wine's user is one of.
func TestPipeOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	name, err := PipeName()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := winio.ListenPipe(name, &winio.PipeConfig{SecurityDescriptor: "O:BAD:P(A;;FA;;;WD)"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	said := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		said <- string(b)
	}()
	if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
	var stranger *Stranger
	if _, err := Dial(t.Context(), path); !errors.As(err, &stranger) || !strings.Contains(err.Error(), "S-1-5-32-544") {
		t.Fatalf("a pipe of the administrators: %v", err)
	}
	if s := <-said; s != "" {
		t.Errorf("it was told %q", s)
	}
}

// What lies at a socket's path leads to pipes of ours only.
func TestPipeNote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	good := pipePrefix + strings.Repeat("0a", pipeRandom)
	for what, note := range map[string]string{
		"nothing": "", "another pipe": `\\.\pipe\lsass`, "another machine": `\\host\pipe\carrel-` + strings.Repeat("0a", pipeRandom),
		"a path": `C:\Windows\win.ini`, "more": good + "0a", "less": good[:len(good)-2], "no number": good[:len(good)-1] + `\`,
	} {
		if err := os.WriteFile(path, []byte(note), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Dial(context.Background(), path); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The control: a good note is followed, to a pipe that is not there.
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(context.Background(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if ln, err := Listen(path); err == nil {
		ln.Close()
		t.Error("a folder is no note")
	}
}
