package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// passed carries an agent's streams where there is no vsock: over one Unix
// socket that it inherited. Each message is two numbers at most, 4 bytes big
// endian each, and those from the host may bring a connected socket
// (SCM_RIGHTS):
//
//	from the host    port          with a stream: a call to that port
//	to the host      port, id      asks for a stream to that port of the host
//	from the host    port, id      the answer: a stream, or none: refused
//
// It is the listener of the host's calls.
type passed struct {
	conn  *net.UnixConn
	calls chan net.Conn
	ended chan struct{} // closed when receive has returned

	mu    sync.Mutex
	id    uint32
	dials map[uint32]chan net.Conn // by id; nil when receive has returned
}

// waitingCalls is how many calls wait for Accept; more are refused, as a
// kernel refuses them when a listener's queue is full.
const waitingCalls = 128

// maxDials bounds how many streams to the host are asked for at once.
const maxDials = 256

func newPassed(f *os.File) (*passed, error) {
	conn, err := fileConn(f)
	if err != nil {
		return nil, err
	}
	p := &passed{conn: conn, calls: make(chan net.Conn, waitingCalls), ended: make(chan struct{}), dials: make(map[uint32]chan net.Conn)}
	go p.receive()
	return p, nil
}

// Addr is that of the socket over which connections come.
func (p *passed) Addr() net.Addr { return p.conn.LocalAddr() }

// Close ends the listener and every dial under way.
func (p *passed) Close() error { return p.conn.Close() }

// wait closes, and returns when nothing of it runs any more.
func (p *passed) wait() {
	_ = p.conn.Close()
	<-p.ended
}

// Accept waits for the next call. The other side's end is ErrClosed.
func (p *passed) Accept() (net.Conn, error) {
	select {
	case c := <-p.calls:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

// dial opens a stream to a port of the host.
func (p *passed) dial(ctx context.Context, port uint32) (net.Conn, error) {
	answer := make(chan net.Conn, 1)
	p.mu.Lock()
	if p.dials == nil || len(p.dials) >= maxDials {
		defer p.mu.Unlock()
		if p.dials == nil {
			return nil, fmt.Errorf("dial port %d of the host: %w", port, net.ErrClosed)
		}
		return nil, fmt.Errorf("dial port %d of the host: %d dials are under way, which is the limit", port, maxDials)
	}
	p.id++
	id := p.id
	p.dials[id] = answer
	p.mu.Unlock()
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, port), id)
	_, err := p.conn.Write(b)
	if err == nil {
		select {
		case c := <-answer:
			if c == nil {
				return nil, fmt.Errorf("dial port %d of the host: %w", port, unix.ECONNREFUSED)
			}
			return c, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	p.mu.Lock()
	delete(p.dials, id)
	p.mu.Unlock()
	select {
	case c := <-answer: // it came at the last moment
		if c != nil {
			_ = c.Close()
		}
	default:
	}
	return nil, fmt.Errorf("dial port %d of the host: %w", port, err)
}

// receive hands each stream to who waits for it, until the socket ends.
func (p *passed) receive() {
	defer func() {
		_ = p.conn.Close()
		p.mu.Lock()
		for _, answer := range p.dials {
			answer <- nil
		}
		p.dials = nil
		p.mu.Unlock()
		close(p.ended)
		for {
			select {
			case c := <-p.calls:
				_ = c.Close()
			default:
				return
			}
		}
	}()
	for {
		message, conn, err := receivePassed(p.conn)
		if err != nil {
			return
		}
		switch len(message) {
		case 4: // a call
			if conn == nil {
				continue
			}
			if binary.BigEndian.Uint32(message) == wire.PortAgent {
				select {
				case p.calls <- conn:
					continue
				default:
				}
			}
			// As a guest's kernel would: nobody listens there.
			_ = conn.Close()
		case 8: // an answer
			p.mu.Lock()
			id := binary.BigEndian.Uint32(message[4:])
			answer := p.dials[id]
			delete(p.dials, id)
			if answer != nil {
				answer <- conn // it has room for the one answer
			}
			p.mu.Unlock()
			if answer == nil && conn != nil {
				_ = conn.Close() // who asked has given up
			}
		}
	}
}

// receivePassed reads one message and the stream that came with it, if any.
func receivePassed(from *net.UnixConn) ([]byte, net.Conn, error) {
	var b [8]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := from.ReadMsgUnix(b[:], oob)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, net.ErrClosed
	}
	if oobn == 0 {
		return b[:n], nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, nil, errors.New("a message came with what is not a connection")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, nil, errors.New("a message came with what is not a connection")
	}
	conn, err := fileConn(os.NewFile(uintptr(fds[0]), "stream"))
	if err != nil {
		return nil, nil, err
	}
	return b[:n], conn, nil
}

var _ net.Listener = (*passed)(nil)
