package daemon

import (
	"context"
	"net"

	"github.com/carrel-vm/carrel/guest/place"
)

type callerKey struct{}

// withCaller notes who is at the other end of a connection: http.Server.ConnContext.
// Where the system does not say of which session a process is, each connection is
// one of its own.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	who := caller{session: c, conn: c}
	if s := place.PeerSession(c); s != 0 {
		who.session = s
	}
	return context.WithValue(ctx, callerKey{}, who)
}

// callerOf is who makes a call.
func callerOf(ctx context.Context) caller {
	who, _ := ctx.Value(callerKey{}).(caller)
	return who
}
