package egresstest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// The keys that the API knows: the user's own, and the attacker's.
const (
	OwnKey      = "sk-ant-OWN-4f1d8c2a9b7e6035"
	AttackerKey = "sk-ant-EVIL-a1b2c3d4e5f60718"
)

// API stands in for api.anthropic.com: it takes messages and files from whoever
// has a key, and remembers whose they were.
type API struct {
	mu    sync.Mutex
	calls []Call
}

// Call is one call that the API accepted or refused.
type Call struct {
	// Path is the endpoint; Key is what came with it, from whichever header.
	Path, Key string
	// Sum is the sha256 of the body in hex, Bytes its length.
	Sum   string
	Bytes int64
}

// Calls are all that came since the last Reset.
func (a *API) Calls() []Call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Call(nil), a.calls...)
}

// Reset forgets them.
func (a *API) Reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = nil
}

func (a *API) handler() http.Handler {
	answer := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			key := r.Header.Get("X-Api-Key")
			if auth := r.Header.Get("Authorization"); key == "" && auth != "" {
				key = auth
			}
			h := sha256.New()
			n, err := io.Copy(h, r.Body)
			a.mu.Lock()
			a.calls = append(a.calls, Call{r.URL.Path, key, hex.EncodeToString(h.Sum(nil)), n})
			a.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			switch {
			case err != nil:
				w.WriteHeader(http.StatusBadRequest)
			case key != OwnKey && key != AttackerKey:
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprintln(w, `{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}`)
			default:
				fmt.Fprintln(w, text)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/messages", answer(`{"type":"message","content":[{"type":"text","text":"Hello from the model"}]}`))
	mux.HandleFunc("POST /v1/files", answer(`{"type":"file","id":"file_011"}`))
	mux.HandleFunc("GET /v1/models", answer(`{"data":[{"id":"claude-test"}]}`))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer("")(w, r)
	})
	return mux
}
