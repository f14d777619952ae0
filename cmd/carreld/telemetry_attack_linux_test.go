package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// A receiver of telemetry that is hostile or broken costs nobody anything: tasks
// and calls are answered, the daemon does not grow, and it ends. One that is sound
// gets what happened (the control), also what was made while it was not.
func TestTelemetryReceiver(t *testing.T) {
	// gone is closed when the test is over: a server hears of a client that went only
	// where it has read all of its request.
	type answers func(w http.ResponseWriter, r *http.Request, gone <-chan struct{})
	endless := func(kind string, b []byte) answers {
		return func(w http.ResponseWriter, r *http.Request, _ <-chan struct{}) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", kind)
			for {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}
	}
	for name, answer := range map[string]answers{
		"hangs": func(w http.ResponseWriter, r *http.Request, gone <-chan struct{}) {
			io.Copy(io.Discard, r.Body)
			<-gone
		},
		"no read": func(w http.ResponseWriter, r *http.Request, gone <-chan struct{}) { <-gone },
		"endless": endless("application/x-protobuf", make([]byte, 64<<10)),
		"a page":  endless("text/html", []byte("<html>\x1b[2Jlog in</html>\n")),
		"drips":   drip,
		"no": func(w http.ResponseWriter, r *http.Request, _ <-chan struct{}) {
			http.Error(w, "\x1b]0;owned\x07 no", http.StatusInternalServerError)
		},
		"elsewhere": func(w http.ResponseWriter, r *http.Request, _ <-chan struct{}) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		},
		"sound": func(http.ResponseWriter, *http.Request, <-chan struct{}) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gone := make(chan struct{})
			var asked, bytes atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if name == "sound" {
					n, _ := io.Copy(io.Discard, r.Body)
					bytes.Add(n)
					w.Header().Set("Content-Type", "application/x-protobuf")
				}
				answer(w, r, gone)
			}))
			t.Cleanup(func() { close(gone); srv.CloseClientConnections(); srv.Close() })
			w := newRing2(t)
			if err := os.MkdirAll(filepath.Join(w.home, "config"), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(w.home, "config", "policy.yaml"), "version: 1\ntelemetry: {endpoint: \""+srv.URL+"\", interval: 10}\n")
			w.start()
			c := w.client()
			w.guest(c, "box")
			sh(t, c, "box", "", "seq 1000") // what a first task makes grow
			before := holds(t, w.d.Process.Pid)
			for range scaled(100, 1000) {
				if r := sh(t, c, "box", "", "echo here"); r.out != "here\n" {
					t.Fatalf("%+v", r)
				}
			}
			eventually(t, "the receiver was asked", func() bool { return asked.Load() > 0 })
			if name == "sound" {
				eventually(t, "what happened has arrived", func() bool { return bytes.Load() > 10<<10 })
			}
			after := holds(t, w.d.Process.Pid)
			t.Logf("asked %d times, %d bytes taken; the daemon before and after: %+v %+v", asked.Load(), bytes.Load(), before, after)
			if after.memory > before.memory+64<<20 || after.files > before.files+16 {
				t.Errorf("the daemon grew: %+v, then %+v", before, after)
			}
			if _, err := c.StartGuest(t.Context(), &api.GuestSpec{Name: "other"}, client.GuestOptions{}); err != nil {
				t.Errorf("a guest beside it: %v", err)
			}
			began := time.Now()
			if err := c.Shutdown(t.Context(), true); err != nil {
				t.Errorf("the daemon does not end: %v", err)
			}
			t.Logf("it ended after %v", time.Since(began))
		})
	}
}

// drip answers a byte at a time.
func drip(w http.ResponseWriter, r *http.Request, gone <-chan struct{}) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/x-protobuf")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-gone:
			return
		case <-tick.C:
		}
		if _, err := w.Write([]byte{0}); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
}
