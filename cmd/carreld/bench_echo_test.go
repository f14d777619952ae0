//go:build bench

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// An echo over HTTP/2 on a socket, or on a pipe of Windows', which is the least that a call costs: a process
// of its own, as the daemon is.
func init() {
	if len(os.Args) != 3 || os.Args[1] != "http-echo" {
		return
	}
	ln, err := echoListen(os.Args[2])
	if err == nil {
		s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				_, err = w.Write(body)
			}
			if err != nil {
				panic(http.ErrAbortHandler)
			}
		})}
		s.Protocols.SetUnencryptedHTTP2(true)
		err = s.Serve(ln)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// echoClient is net/http's, to such a server.
func echoClient(socket string) *http.Client {
	t := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return echoDial(ctx, socket)
	}}
	t.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: t}
}

func (b *figures) echo(h *http.Client) float64 {
	sent := []byte("what a call may send")
	begin := time.Now()
	r, err := h.Post("http://echo", "application/octet-stream", bytes.NewReader(sent))
	if err != nil {
		b.Fatal(err)
	}
	got, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil || !bytes.Equal(got, sent) {
		b.Fatalf("the echo: %q %v", got, err)
	}
	return ms(time.Since(begin))
}
