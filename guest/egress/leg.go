package egress

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

// leg is one connection of the guest whose requests are judged one by one. The
// core makes it; inspect and inspectClear serve it. What the guest's side reads
// and writes is counted and slowed by the core, in the connection it hands over.
type leg struct {
	dest policy.Destination
	// dial resolves, checks and dials dest, through the host's own proxy if there
	// is one, and says which address it dialled. Each call is a fresh connection
	// without TLS, and dies with the leg. A refused address is a *refusal, and is
	// recorded here.
	dial func(ctx context.Context) (net.Conn, netip.Addr, error)
	// proxy is nil, or the host's own proxy that takes requests in clear text:
	// dial then leads to it, and requests have to be sent in absolute form, with
	// its user and password. Only for inspectClear.
	proxy *url.URL
	// judge decides on one request by the rules of this moment, waits where they
	// say "ask", and records the event. It is cheap enough to call per request.
	judge func(ctx context.Context, r policy.Request) judged
	// secrets are those in use at this moment; never nil.
	secrets func() *secret.Edge
	// tls is a fresh client configuration for dest: the host's roots, ServerName.
	// NextProtos is the inspector's to set.
	tls func() *tls.Config
	// note records a request that was refused for another reason than the rules
	// (a placeholder, a smuggling form): it is an event with that reason, and the
	// task is told.
	note func(r policy.Request, reason string)
	// done records the end of a request that was allowed: bytes of its body and of
	// the answer's. It has to be called, or new rules would be held against it for
	// as long as the connection lives.
	done func(j judged, up, down int64)
	// up and down are the bytes of the whole connection, on the guest's side.
	up, down *atomic.Int64
}

// judged is one judged request.
type judged struct {
	// Verdict has ALLOW or DENY; a question was answered. Its Bound says that what
	// the guest's own credentials are has to be taken off.
	Verdict policy.Verdict
	// Secret is the name of the secret to add, or empty.
	Secret string
	// MaxUp bounds the request's body in bytes; 0: no bound.
	MaxUp int64
	// Line says why it was refused and what would allow it, in one line of
	// printable ASCII: a status phrase or a body. Empty if it was allowed.
	Line string

	req     policy.Request
	live    *policy.Request // its place among the connection's, if it was allowed
	started time.Time
}

func (j judged) allowed() bool { return allowed(j.Verdict) }
