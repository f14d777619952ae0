package guest

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// MaxConns is how many connections a socket of ours has at once.
const MaxConns = 512

// crowd bounds the connections of one server. Of more than it may have, the one
// that has been quiet longest is closed: a connection that has sent nothing yet,
// or waits between two requests. So those who only sit there keep nobody out.
// If all are at work, the new one is closed.
type crowd struct {
	max int

	mu    sync.Mutex
	all   map[net.Conn]*list.Element // nil: at work
	quiet list.List                  // of net.Conn, the longest first
}

// state implements http.Server.ConnState.
func (c *crowd) state(conn net.Conn, s http.ConnState) {
	if out := c.change(conn, s); out != nil {
		out.Close()
	}
}

// change follows a connection, and returns the one that is to go.
func (c *crowd) change(conn net.Conn, s http.ConnState) (out net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[net.Conn]*list.Element{}
	}
	at, known := c.all[conn]
	if at != nil {
		c.quiet.Remove(at)
	}
	switch s {
	case http.StateNew:
		if len(c.all) >= c.max {
			oldest := c.quiet.Front()
			if oldest == nil {
				return conn
			}
			out = c.quiet.Remove(oldest).(net.Conn)
			delete(c.all, out)
		}
		c.all[conn] = c.quiet.PushBack(conn)
	case http.StateActive, http.StateIdle:
		if !known { // it was closed meanwhile
			return nil
		}
		if c.all[conn] = nil; s == http.StateIdle {
			c.all[conn] = c.quiet.PushBack(conn)
		}
	default:
		delete(c.all, conn)
	}
	return out
}
