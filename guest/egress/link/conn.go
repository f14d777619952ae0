package link

import (
	"encoding/json"
	"errors"
	"net"
	"syscall"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/packet"
)

// Pair returns the two ends of a new link, close-on-exec, for two processes
// that are to be started.
func Pair() (keeper, edge *inherit.End, err error) { return packet.Pair() }

// Conn is one end of a link. One goroutine may receive while others send.
type Conn struct{ c *packet.Conn }

// New takes an end of a link. f is closed, also on an error.
func New(f *inherit.End) (*Conn, error) {
	c, err := packet.New(f)
	if err != nil {
		return nil, err
	}
	return &Conn{c}, nil
}

// Close ends the link. It may be called twice.
func (c *Conn) Close() error { return c.c.Close() }

// Send sends a message, with conn's descriptor if conn is not nil. conn stays
// the caller's. It waits at most packet.SendTimeout for the other end.
func (c *Conn) Send(m *Message, conn syscall.Conn) error {
	if err := m.check(); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return c.c.Send(b, conn)
}

// SendTrust says hello.
func (c *Conn) SendTrust(pem []byte) error {
	if len(pem) > MaxTrust {
		return bad("certificates of %d bytes; %d are possible", len(pem), MaxTrust)
	}
	for more := true; more; {
		n := min(len(pem), trustBit)
		more = n < len(pem)
		if err := c.Send(&Message{Kind: Hello, Trust: pem[:n], More: more}, nil); err != nil {
			return err
		}
		pem = pem[n:]
	}
	return nil
}

// Receive returns the next message and the connection that came with it, which
// is then the caller's. io.EOF says that the other end is gone.
func (c *Conn) Receive() (*Message, net.Conn, error) {
	b, f, err := c.c.Receive()
	if err != nil {
		return nil, nil, asMessage(err)
	}
	m, err := decode(b, f != nil)
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, nil, err
	}
	if f == nil {
		return m, nil, nil
	}
	conn, err := packet.Stream(f)
	if err != nil {
		return nil, nil, asMessage(err)
	}
	return m, conn, nil
}

// asMessage says of a bad packet that it is a bad message.
func asMessage(err error) error {
	if errors.Is(err, packet.ErrPacket) {
		return bad("%v", err)
	}
	return err
}
