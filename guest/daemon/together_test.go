package daemon

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestTogether: what a stream flushes leaves with what comes after, and nothing
// is lost. A stream of another procedure does not wait.
func TestTogether(t *testing.T) {
	goOn := make(chan struct{})
	srv := httptest.NewServer(together(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "one")
		w.(http.Flusher).Flush()
		<-goOn
		io.WriteString(w, "two")
	}), "/waits"))
	defer srv.Close()
	for path, waits := range map[string]bool{"/waits": true, "/other": false} {
		answered := make(chan string, 1)
		go func() {
			res, err := http.Get(srv.URL + path)
			if err != nil {
				t.Error(err)
				answered <- ""
				return
			}
			defer res.Body.Close()
			answered <- "headers"
			b, _ := io.ReadAll(res.Body)
			answered <- string(b)
		}()
		if !waits {
			if got := <-answered; got != "headers" {
				t.Error(path, "has sent", got)
			}
			goOn <- struct{}{}
		} else {
			select {
			case got := <-answered:
				t.Error(path, "did not wait, and has sent", got)
			case <-time.After(200 * time.Millisecond):
			}
			goOn <- struct{}{}
			<-answered
		}
		if got := <-answered; got != "onetwo" {
			t.Errorf("%s has sent %q", path, got)
		}
	}
}
