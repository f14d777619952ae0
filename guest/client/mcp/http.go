package mcp

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	// idleSession is after how long without a request a session is over, and its
	// guest with it.
	idleSession = 30 * time.Minute
	// maxSessions bounds the sessions of a server: each may have a guest.
	maxSessions = 16
	// maxRequest bounds a request, in bytes: a file of 4 MiB in base64 fits.
	maxRequest = 8 << 20
	// headerTime bounds the headers of a request; shutdownTime what is under way
	// when the server ends.
	headerTime, shutdownTime = 10 * time.Second, 2 * time.Second
)

// Path is where ServeHTTP serves.
const Path = "/mcp"

// httpServer has the sessions of a server.
type httpServer struct {
	o     Options
	token [32]byte // sha256
	hosts map[string]bool
	mcp   *sdk.StreamableHTTPHandler
	// version only says which protocols are spoken.
	version *sdk.Server

	mu       sync.Mutex
	sessions map[*session]struct{}
	ends     sync.WaitGroup
}

// ServeHTTP serves sessions on ln, which must be on loopback, at Path, to whoever
// has the token, until ctx ends. Then it ends the sessions and their guests.
func ServeHTTP(ctx context.Context, ln net.Listener, token string, o Options) error {
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() {
		ln.Close()
		return fmt.Errorf("%v is not an address of loopback", ln.Addr())
	}
	if len(token) < 16 {
		ln.Close()
		return errors.New("the token is shorter than 16 characters")
	}
	h := &httpServer{
		o: o, token: sha256.Sum256([]byte(token)), hosts: map[string]bool{}, sessions: map[*session]struct{}{},
		version: newSession(o, handshakes()).server,
	}
	for _, host := range []string{"127.0.0.1", "localhost", "::1", addr.IP.String()} {
		h.hosts[net.JoinHostPort(host, fmt.Sprint(addr.Port))] = true
	}
	h.mcp = sdk.NewStreamableHTTPHandler(h.server, &sdk.StreamableHTTPOptions{SessionTimeout: idleSession, MaxRequestBodyBytes: maxRequest})
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTime, MaxHeaderBytes: 64 << 10}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		// A stream of events has no end of its own, so it is not waited for long.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		if srv.Shutdown(stop) != nil {
			srv.Close()
		}
		cancel()
		<-served
	}
	h.closeAll()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeHTTP checks who asks. A page in the user's browser can reach loopback, so
// neither that nor a name that somebody has pointed at it proves anything: the
// host must be ours, a page's origin must be, too, and the token must be right.
func (h *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(token))
	switch {
	case !h.hosts[strings.ToLower(r.Host)]:
		http.Error(w, "this host is not served here", http.StatusForbidden)
	case !h.originOurs(r.Header.Values("Origin")):
		http.Error(w, "pages of this origin are not served", http.StatusForbidden)
	case !bearer || subtle.ConstantTimeCompare(sum[:], h.token[:]) != 1:
		w.Header().Set("WWW-Authenticate", `Bearer realm="carrel"`)
		http.Error(w, "the token is missing or wrong", http.StatusUnauthorized)
	case r.URL.Path != Path:
		http.NotFound(w, r)
	default:
		h.mcp.ServeHTTP(w, r)
	}
}

func (h *httpServer) originOurs(all []string) bool {
	for _, o := range all {
		u, err := url.Parse(o)
		if err != nil || u.Scheme != "http" || !h.hosts[strings.ToLower(u.Host)] {
			return false
		}
	}
	return len(all) <= 1
}

// server makes a session for a request that begins one. The handler asks twice
// about each request, and the first time only for what is spoken.
func (h *httpServer) server(r *http.Request) *sdk.Server {
	if r.Header.Get("Mcp-Session-Id") != "" || r.Method != http.MethodPost {
		return h.version
	}
	s := newSession(h.o, handshakes())
	s.server.AddReceivingMiddleware(h.follow(s))
	return s.server
}

var errMany = errors.New("too many sessions are open: end one of them")

// follow ends a session when its connection does. A session begins with its first
// message; what is made for a request and never used costs nothing.
func (h *httpServer) follow(s *session) sdk.Middleware {
	return func(next sdk.MethodHandler) sdk.MethodHandler {
		return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
			ss, ok := req.GetSession().(*sdk.ServerSession)
			if ok && !h.add(s, ss) {
				return nil, errMany
			}
			return next(ctx, method, req)
		}
	}
}

func (h *httpServer) add(s *session, ss *sdk.ServerSession) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, is := h.sessions[s]; is {
		return true
	}
	if h.sessions == nil || len(h.sessions) >= maxSessions {
		return false
	}
	h.sessions[s] = struct{}{}
	s.connection, s.dropped = ss, h.drop
	h.ends.Go(func() {
		ss.Wait()
		s.close()
	})
	return true
}

func (h *httpServer) drop(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, s)
}

// closeAll ends all sessions; there will be no others.
func (h *httpServer) closeAll() {
	h.mu.Lock()
	var all []*sdk.ServerSession
	for s := range h.sessions {
		all = append(all, s.connection)
	}
	h.sessions = nil
	h.mu.Unlock()
	for _, ss := range all {
		ss.Close()
	}
	h.ends.Wait()
}
