package daemon

import "net/http"

// together lets the messages of a procedure's stream leave when there is a
// packet of them (4 KiB in net/http), or the stream ends. Else each is sent by
// itself, and wakes the client: of a thousand small ones that is most of what
// they cost. It is for streams whose messages follow each other without a pause.
func together(h http.Handler, procedure string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == procedure {
			w = unflushed{w}
		}
		h.ServeHTTP(w, r)
	})
}

// unflushed leaves it to the writer when it sends.
type unflushed struct{ http.ResponseWriter }

// Flush implements http.Flusher, which connect wants of a stream's writer.
func (unflushed) Flush() {}
