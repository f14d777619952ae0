package egresstest

import (
	"io"
	"net"
	"sync"
	"time"
)

// Canary listens on the host itself, where its owner's services would be. Any
// connection that it accepts is an escape.
type Canary struct {
	// Port is the same on every address: loopback's two, and the host's own two.
	Port string

	mu   sync.Mutex
	from []string
}

// newCanary listens; what it says is what a test looks for.
func newCanary(w *World) (*Canary, error) {
	c := &Canary{Port: "7777"}
	for _, a := range []string{"127.0.0.1", "::1", HostAddr, HostAddr6} {
		l, err := net.Listen("tcp", net.JoinHostPort(a, c.Port))
		if err != nil {
			return nil, err
		}
		w.stop = append(w.stop, func() { l.Close() })
		w.wait.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				c.mu.Lock()
				c.from = append(c.from, conn.RemoteAddr().String()+" to "+conn.LocalAddr().String())
				c.mu.Unlock()
				w.wait.Go(func() { speak(conn) })
			}
		})
	}
	return c, nil
}

// speak hears the other side out, says the word, and waits for it to arrive.
func speak(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	conn.Read(make([]byte, 64<<10))
	conn.Write([]byte("HTTP/1.0 200 OK\r\n\r\n" + CanaryWord + "\n"))
	if half, ok := conn.(*net.TCPConn); ok && half.CloseWrite() == nil {
		io.Copy(io.Discard, conn)
	}
}

// CanaryWord is what the canary says to whoever reaches it.
const CanaryWord = "CANARY-OF-THE-HOST"

// Connections are those that were accepted since the last Reset.
func (c *Canary) Connections() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.from...)
}

// Reset forgets them.
func (c *Canary) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from = nil
}
