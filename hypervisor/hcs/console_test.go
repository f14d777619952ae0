package hcs

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
)

// console makes one, to which write writes, and returns the panic that was found
// and how many bytes the sink got.
func console(t *testing.T, ctx context.Context, write func(c net.Conn)) (panicked string, got []byte) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Error(err)
			ln.Close()
			return
		}
		defer c.Close()
		write(c)
	}()
	panicked = drainConsole(ctx, ln, func(p []byte) { got = append(got, p...) })
	<-done
	if _, err := ln.Accept(); err == nil {
		t.Error("somebody else may have a console")
	}
	return panicked, got
}

func TestConsole(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "login:": "",
		"boot\n[1.0] Kernel panic - not syncing: no init\nmore\n":          "Kernel panic - not syncing: no init",
		"Kernel panic - not syncing: \x1b[2J\xff":                          `Kernel panic - not syncing: \x1b[2J\xff`,
		"Kernel panic - not syncing: " + strings.Repeat("x", 1000):         "Kernel panic - not syncing: " + strings.Repeat("x", 256-28),
		"Kernel panic - not syncing: old" + strings.Repeat("\n", 8<<10):    "", // not the guest's last words
		strings.Repeat("x", 70_000) + "Kernel panic - not syncing: late\n": "Kernel panic - not syncing: late",
	} {
		got, all := console(t, t.Context(), func(c net.Conn) { io.WriteString(c, text) })
		if got != want || !bytes.Equal(all, []byte(text)) {
			t.Errorf("%.60q: %q, want %q; %d bytes of %d", text, got, want, len(all), len(text))
		}
	}
}

// TestConsoleEnds has a console end that nobody ends.
func TestConsoleEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	console(t, ctx, func(c net.Conn) {
		cancel()
		io.Copy(io.Discard, c) // until the other side closes
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if got := drainConsole(t.Context(), ln, nil); got != "" {
		t.Error(got)
	}
}
