package daemon

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// A keeper that dies before, or in the middle of, its answer is a guest that does
// not run; what a keeper says itself is handed on.
func TestHandOn(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		word   string
	}{
		"dies before it answers": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "not_running"},
		"dies within its answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("\x0a"))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "not_running"},
		"dies with unread bytes": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				c.(*net.TCPConn).SetLinger(0) // its end is a reset then
				c.Close()
			}
		}, "not_running"},
		"refuses": {func(w http.ResponseWriter, r *http.Request) {
			connect.NewErrorWriter().Write(w, r, api.NewError(connect.CodeResourceExhausted, "too_many_tasks", "64 tasks run", ""))
		}, "too_many_tasks"},
		"fails without a word": {func(w http.ResponseWriter, r *http.Request) {
			connect.NewErrorWriter().Write(w, r, connect.NewError(connect.CodeUnknown, errors.New("something else")))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(c.answer)
			defer s.Close()
			_, err := apiconnect.NewTaskServiceClient(s.Client(), s.URL).Start(t.Context(), connect.NewRequest(&api.StartTaskRequest{}))
			if err == nil {
				t.Fatal("the keeper's end went unseen")
			}
			var ce *connect.Error
			if err = (*Daemon)(nil).handOn(&entry{name: "one"}, err); !errors.As(err, &ce) {
				t.Fatal(err)
			}
			word := ""
			for _, d := range ce.Details() {
				if v, err := d.Value(); err == nil {
					word = v.(*api.ErrorDetail).Code
				}
			}
			if word != c.word {
				t.Errorf("handed on as %q (%v), and is %q", word, err, c.word)
			}
		})
	}
}
