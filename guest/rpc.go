package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
)

// ListenPrivate listens on a unix socket that only this user may open: in a
// folder of mode 0700, of mode 0600 itself, and every peer's user is checked.
// The caller holds the lock that says nobody else listens there, so that a
// socket left by a killed process is replaced.
func ListenPrivate(path string) (net.Listener, error) { return listenPrivate("unix", path) }

// listenPrivate is ListenPrivate for a socket of another kind.
func listenPrivate(network, path string) (net.Listener, error) {
	if err := place.CheckPrivate(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is in the way: it is not a socket (remove it)", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return &privateListener{ln}, nil
}

type privateListener struct{ *net.UnixListener }

// Accept drops connections of other users before a byte of them is read.
func (l *privateListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if place.CheckPeer(c) == nil {
			return c, nil
		}
		c.Close()
	}
}

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
			c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, err
			}
			if err := place.CheckPeer(c.(*net.UnixConn)); err != nil {
				c.Close()
				return nil, err
			}
			return c, nil
		},
		Protocols: new(http.Protocols),
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: t}
}
