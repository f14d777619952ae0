package egresstest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/websocket"
)

// origin is all that a web server can do:
//
//	/            its Host header
//	/bytes/N     N bytes, the same for the same N; Bytes makes them too
//	/upload      the sha256 of the body, in hex
//	/sse         three events; the third comes when /sse/go is asked for
//	/ws          a WebSocket that says what it was told
//	/grpc        a trailer after the body (HTTP/2)
//	/to?url=U    a redirect to U, by ?code=, else 307
//	/status/N    an answer with that status
//	/echo        as the echo host does
func origin() http.Handler {
	gate := make(chan struct{}, 16)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "this is %s\n", r.Host) })
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "not a number of bytes", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.Copy(w, Bytes(n))
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		if _, err := io.Copy(h, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, hex.EncodeToString(h.Sum(nil)))
	})
	mux.HandleFunc("/sse", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		for i := range 3 {
			if i == 2 {
				select {
				case <-gate:
				case <-r.Context().Done():
					return
				}
			}
			fmt.Fprintf(w, "data: event %d\n\n", i+1)
			rc.Flush()
		}
	})
	mux.HandleFunc("/sse/go", func(w http.ResponseWriter, r *http.Request) {
		select {
		case gate <- struct{}{}:
		default:
		}
	})
	ws := websocket.Server{Handler: func(c *websocket.Conn) { io.Copy(c, c) }}
	mux.Handle("/ws", ws)
	mux.HandleFunc("/grpc", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		io.Copy(w, r.Body)
		w.Header().Set("Grpc-Status", "0")
	})
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil || code < 300 || code > 399 {
			code = http.StatusTemporaryRedirect
		}
		w.Header().Set("Location", r.FormValue("url"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/status/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil || n < 200 || n > 599 {
			n = http.StatusBadRequest
		}
		w.WriteHeader(n)
	})
	return mux
}

// Bytes are n bytes that look random and are the same for the same n.
func Bytes(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}), n)
}

// Sum is the sha256 of Bytes(n) in hex.
func Sum(n int64) string {
	h := sha256.New()
	io.Copy(h, Bytes(n))
	return hex.EncodeToString(h.Sum(nil))
}

// Echoed is what the echo host answers, in JSON.
type Echoed struct {
	Method, Host, URI, Proto string
	Header                   http.Header
	Body                     string
}

// echo says what it was sent, up to 1 MiB of it.
func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(Echoed{r.Method, r.Host, r.RequestURI, r.Proto, r.Header, string(b)})
}

// slow sends 60 bytes, one every ?ms= milliseconds, else every second.
func slow(w http.ResponseWriter, r *http.Request) {
	ms, err := strconv.Atoi(r.FormValue("ms"))
	if err != nil || ms < 1 {
		ms = 1000
	}
	tick := time.NewTicker(time.Duration(ms) * time.Millisecond)
	defer tick.Stop()
	rc := http.NewResponseController(w)
	for range 60 {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
		if _, err := io.WriteString(w, "."); err != nil || rc.Flush() != nil {
			return
		}
	}
}
