package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/packet"
)

// Pair returns the two ends of a control socket.
func Pair() (keeper, process *inherit.End, err error) { return packet.Pair() }

// Conn is one end of a control socket. One goroutine may receive while others
// send.
type Conn struct{ c *packet.Conn }

// New takes an end. f is closed, also on an error.
func New(f *inherit.End) (*Conn, error) {
	c, err := packet.New(f)
	if err != nil {
		return nil, err
	}
	return &Conn{c}, nil
}

// Close ends it. It may be called twice.
func (c *Conn) Close() error { return c.c.Close() }

// SyscallConn implements syscall.Conn, so that a control socket can be handed to
// another process.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.c.SyscallConn() }

// Send sends a message, with file's descriptor if it brings one; file stays the
// caller's.
func (c *Conn) Send(m *Message, file syscall.Conn) error {
	if err := m.check(); err != nil {
		return err
	}
	if brings[m.Kind] != (file != nil) {
		return bad("%s with a file: %v", m.Kind, file != nil)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return c.c.Send(b, file)
}

// Receive returns the next message and the file that came with it, which is
// then the caller's. io.EOF says that the other end is gone.
func (c *Conn) Receive() (*Message, *inherit.End, error) {
	b, f, err := c.c.Receive()
	if err != nil {
		return nil, nil, errLink(err)
	}
	m, err := decode(b, f != nil)
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, nil, err
	}
	return m, f, nil
}

// Tell says what is to be served and waits until it is. It is called once, by
// who started the process, before anybody else receives.
func (c *Conn) Tell(ctx context.Context, spec Spec) error {
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if len(b) > MaxSpec {
		return bad("rules of %d bytes; %d are possible", len(b), MaxSpec)
	}
	for more := true; more; {
		n := min(len(b), piece)
		more = n < len(b)
		if err := c.Send(&Message{Kind: Configure, Piece: b[:n], More: more}, nil); err != nil {
			return fmt.Errorf("tell the share process what to serve: %w", err)
		}
		b = b[n:]
	}
	stop := context.AfterFunc(ctx, func() { c.c.SetReadDeadline(time.Unix(1, 0)) })
	m, f, err := c.Receive()
	if f != nil {
		f.Close()
	}
	stopped := stop()
	switch {
	case err != nil && !stopped:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return errors.New("its server ended before it was ready")
	case err != nil:
		return err
	case m.Kind != Ready:
		return bad("%s before ready", m.Kind)
	case m.Error != "":
		return errors.New(m.Error)
	}
	return nil
}

// Told is the other end of Tell: it returns what is to be served. What becomes
// of it is the caller's to say, with Ready.
func (c *Conn) Told() (spec Spec, err error) {
	var b []byte
	for more := true; more; {
		m, f, err := c.Receive()
		if err != nil {
			return spec, fmt.Errorf("read what to share: %w", err)
		}
		if f != nil {
			f.Close()
		}
		if m.Kind != Configure || len(b)+len(m.Piece) > MaxSpec {
			return spec, bad("%s among %d bytes of the spec", m.Kind, len(b))
		}
		b, more = append(b, m.Piece...), m.More
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		return spec, bad("%v", err)
	}
	return spec, nil
}
