package guest

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
)

// NewServer returns a server of HTTP/1.1 and cleartext HTTP/2 for one kind of
// socket: of h it serves what the schema says is served there (api.Served). It
// has the bounds that every socket of ours has: headers of 64 KiB, 10 s to send
// them, idle connections ended after 2 minutes, MaxConns connections.
func NewServer(socket api.Socket, h http.Handler) *http.Server {
	conns := &crowd{max: MaxConns}
	s := &http.Server{
		Handler:           api.Served(socket, h),
		MaxHeaderBytes:    64 << 10,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		Protocols:         new(http.Protocols),
		ConnState:         conns.state,
	}
	// A task that does not read its input stalls one stream. All of them
	// together (250 at most, net/http's bound) must not use up the connection's
	// window, or nobody's signals would pass any more.
	s.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 250 * (256 << 10)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

// NewHTTPClient returns a client of a private socket by cleartext HTTP/2.
func NewHTTPClient(socket string) *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return place.Dial(ctx, socket)
		},
		Protocols: new(http.Protocols),
		HTTP2:     api.ClientHTTP2(),
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: t}
}
