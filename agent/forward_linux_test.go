package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/wire"
)

// TestForward: the host reaches a server on the guest's loopback.
func TestForward(t *testing.T) {
	h := ready(t)
	forward := func(port int) (*session, *wire.Forwarded) {
		t.Helper()
		s := h.call(&wire.Call{Kind: &wire.Call_Forward{Forward: &wire.Forward{Port: uint32(port)}}})
		f := new(wire.Forwarded)
		if err := (protodelim.UnmarshalOptions{MaxSize: 4096}).UnmarshalFrom(bytewise{s.conn}, f); err != nil {
			t.Fatal(err)
		}
		return s, f
	}
	for _, on := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		var server sync.WaitGroup
		server.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				b, _ := io.ReadAll(c)
				fmt.Fprintf(c, "got %s", b)
				_ = c.Close()
			}
		})
		port := l.Addr().(*net.TCPAddr).Port
		for _, say := range []string{"hello", ""} {
			s, f := forward(port)
			if f.Error != "" {
				t.Fatal(f.Error)
			}
			_, _ = io.WriteString(s.conn, say)
			_ = s.conn.CloseWrite()
			wantRead(t, s.conn, "got "+say)
		}
		_ = l.Close()
		server.Wait()
		if _, f := forward(port); !strings.Contains(f.Error, "refused") {
			t.Errorf("a port where nobody listens: %q", f.Error)
		}
	}
	for _, port := range []int{0, 1 << 16, 1 << 30} {
		if _, f := forward(port); !strings.Contains(f.Error, "1 to 65535") {
			t.Errorf("port %d: %q", port, f.Error)
		}
	}
}

// TestRefusals: lines are made harmless, the file is bounded, and no link is
// followed.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	a := &Agent{o: Options{Refusals: filepath.Join(dir, "refusals.log")}}
	read := func() string {
		b, err := os.ReadFile(a.o.Refusals)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := a.refused([]string{"one\x1b[31m\nline", "two"}); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "one?[31m line\ntwo\n" {
		t.Errorf("%q", got)
	}
	line := strings.Repeat("x", maxRefusal-1)
	for i := range 3000 {
		if err := a.refused([]string{fmt.Sprint(i%10, line)}); err != nil {
			t.Fatal(err)
		}
	}
	got := read()
	if len(got) > maxRefusals || len(got) < maxRefusals/2 || !strings.HasSuffix(got, "9"+line+"\n") || !strings.HasPrefix(got[1:], line+"\n") {
		t.Errorf("%d bytes, from %.20q", len(got), got)
	}
	if err := a.refused(make([]string, maxRefusedLines+1)); err == nil {
		t.Error("any number of lines is taken")
	}
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(a.o.Refusals)
	if err := os.Symlink(target, a.o.Refusals); err != nil {
		t.Fatal(err)
	}
	if err := a.refused([]string{"x"}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link is followed: %v", err)
	}
	if b, _ := os.ReadFile(target); len(b) != 0 {
		t.Errorf("%q behind the link", b)
	}
	if err := (&Agent{}).refused([]string{"x"}); err != nil {
		t.Error(err)
	}
}
