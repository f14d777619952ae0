package proxy

import (
	"io"
	"net"
	"sync"
	"time"
)

const (
	// lingering bounds how long, and how many bytes, a client that is still
	// sending is listened to after the host has closed the stream. If the
	// socket were closed over unread bytes, the client would get a reset and
	// might not read the host's last words, which say why (RFC 9112, 9.6).
	lingering      = 5 * time.Second
	lingeringBytes = 16 << 20
)

// stream is a connection with two ends that end on their own.
type stream interface {
	net.Conn
	CloseWrite() error
}

// carry copies bytes both ways until both have ended, each end on its own. The
// caller closes both.
func carry(c *client, host stream) {
	var up sync.WaitGroup
	up.Go(func() {
		_, err := io.Copy(host, c.r)
		if err == nil {
			_ = host.CloseWrite() // fails where the host has closed: its answer is still to be read
			return
		}
		linger(c)
	})
	down(c, host)
	up.Wait()
}

// down copies what the host says, to its end.
func down(c *client, host stream) {
	_, err := io.Copy(c.conn, host)
	if err != nil {
		// The host broke off, or the client is gone: not an end in order.
		_ = c.conn.SetLinger(0)
		_ = c.conn.Close()
		_ = host.Close()
		return
	}
	_ = c.conn.CloseWrite()
}

// linger reads what the client still sends, within bounds.
func linger(c *client) {
	_ = c.conn.SetReadDeadline(time.Now().Add(lingering))
	_, _ = io.CopyN(io.Discard, c.r, lingeringBytes)
}
