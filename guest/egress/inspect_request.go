package egress

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
)

// bad is a request that is refused for its form, whatever the rules say.
type bad struct {
	status int
	reason string
}

// ServeHTTP takes one request through its steps: check, judge, exchange.
func (i *inspection) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !i.begin() {
		panic(http.ErrAbortHandler)
	}
	defer i.finish()
	defer i.rescue()
	if no := i.check(r); no != nil {
		i.leg.note(policy.Request{Method: r.Method, Path: r.URL.EscapedPath()}, no.reason)
		i.answer(w, r, no.status, "carrel: "+no.reason)
		return
	}
	upgrade, no := i.upgrade(r)
	if no != nil {
		i.leg.note(policy.Request{Method: r.Method, Path: r.URL.EscapedPath()}, no.reason)
		i.answer(w, r, no.status, "carrel: "+no.reason)
		return
	}
	j := i.leg.judge(r.Context(), policy.Request{Method: r.Method, Path: r.URL.EscapedPath()})
	if !j.allowed() {
		i.answer(w, r, http.StatusForbidden, j.Line)
		return
	}
	x := &exchange{i: i, j: j, in: r, edge: i.leg.secrets(), upgrade: upgrade}
	x.serve(w)
}

// rescue ends a connection whose request panicked, and no other. net/http would
// do that too, but would print what panicked, which may hold a secret.
func (i *inspection) rescue() {
	p := recover()
	if p == nil {
		return
	}
	if p != http.ErrAbortHandler {
		what := i.leg.secrets().Redact(fmt.Sprint(p))
		i.s.log.Error("an inspected request panicked and its connection was closed", "panic", text(what, 256), "stack", string(debug.Stack()))
	}
	panic(http.ErrAbortHandler)
}

// check says what is wrong with a request's form, or nil. What passes can be
// written in one way only, and is for the destination of this connection.
func (i *inspection) check(r *http.Request) *bad {
	const no = http.StatusBadRequest
	switch {
	case i.gate != nil && r.Method == malformedMethod:
		return &bad{no, "The request is not proper HTTP/1.1: " + i.gate.reason() + "."}
	case r.Method == "CONNECT" || r.Method == "TRACE" || r.Method == "TRACK":
		return &bad{http.StatusMethodNotAllowed, text("The method "+r.Method+" does not pass here.", 100)}
	case !goodMethod(r.Method):
		return &bad{no, "The method is not a word in upper case."}
	case !printable(r.RequestURI) || r.URL.Opaque != "" || r.URL.User != nil || r.URL.Fragment != "" || !strings.HasPrefix(r.URL.Path, "/"):
		return &bad{no, "The target of the request is not a path, with or without a query."}
	case r.ProtoMajor == 2 && (r.URL.Host != "" || r.URL.Scheme != ""), r.RequestURI != i.written(r):
		return &bad{no, "The target of the request has characters that have to be escaped, or names another scheme."}
	}
	if h := r.Header["Host"]; len(h) > 1 || len(h) == 1 && !strings.EqualFold(h[0], r.Host) {
		return &bad{no, "The request names two hosts."} // HTTP/2: beside :authority
	}
	if l := r.Header["Content-Length"]; len(l) > 0 {
		if _, ok := readLength(l[0]); !ok || len(l) > 1 {
			return &bad{no, "The Content-Length is not one plain decimal number."}
		}
	}
	if d, err := policy.ParseDestination(r.Host, i.port()); err != nil || d != i.leg.dest {
		return &bad{http.StatusMisdirectedRequest, fmt.Sprintf("This connection is for %s, and the request is for another host.", i.leg.dest)}
	}
	fields := 0
	for name, values := range r.Header {
		fields += len(values)
		if overrides[fold(name)] {
			return &bad{no, text("The header "+name+" would make another request of it than the one that is judged.", 160)}
		}
	}
	if fields > maxFields {
		return &bad{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("The request has more than %d header fields.", maxFields)}
	}
	return nil
}

// written is the request's target as it will be written: what was sent has to be
// the same, so that no escape is added or taken away after the judgement.
func (i *inspection) written(r *http.Request) string {
	target := r.URL.RequestURI()
	if r.URL.Host != "" || r.URL.Scheme != "" {
		target = i.scheme() + "://" + r.Host + target
	}
	return target
}

func (i *inspection) scheme() string {
	if i.secure {
		return "https"
	}
	return "http"
}

// port is the one that need not be named.
func (i *inspection) port() uint16 {
	if i.secure {
		return 443
	}
	return 80
}

// overrides are headers by which some servers take a request for one with
// another method or path. A "_" is read as "-" by many.
var overrides = map[string]bool{
	"x-http-method-override": true, "x-http-method": true, "x-method-override": true, "x-original-method": true,
	"x-original-url": true, "x-rewrite-url": true,
}

func fold(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// answer refuses a request. In HTTP/1 the reason is the status phrase too, which
// is what npm and apt show; net/http knows no phrases, so the connection is taken
// from it, and closed.
func (i *inspection) answer(w http.ResponseWriter, r *http.Request, status int, line string) {
	line = text(line, wire.MaxText)
	if r.ProtoMajor == 1 {
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			i.last(c, r.Method, status, line)
			return
		}
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, line+"\n")
}

// last writes the last answer of an HTTP/1 connection and closes it.
func (i *inspection) last(c net.Conn, method string, status int, line string) {
	defer c.Close()
	body := line + "\n"
	if method == http.MethodHead {
		body = ""
	}
	c.SetWriteDeadline(time.Now().Add(drainTimeout))
	if _, err := fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, line, len(line)+1, body); err != nil {
		return
	}
	i.gate.CloseWrite()
	drain(i.gate.Conn)
}
