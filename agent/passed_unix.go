//go:build unix

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
// That is for a socket of packets. macOS has none that tell of the other end's
// end; on its stream every message is two numbers, and a call's id is 0. There
// the host is also told, by two zeros, of each stream that has arrived: until
// then it keeps the socket open itself, since the kernel of macOS may take one
// for garbage that is open nowhere but on its way (Chromium's issue 298276).
//
// It is the listener of the host's calls.
type passed struct {
	conn *net.UnixConn
	// next reads one message.
	next func(*net.UnixConn) (passedMessage, error)
	// tells says that the host is told of each stream.
	tells bool
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

// newPassed serves a socket of packets, newStreamed a stream of messages.
func newPassed(f *os.File) (*passed, error) { return carried(f, packet, false) }

func newStreamed(f *os.File) (*passed, error) { return carried(f, streamed, true) }

func carried(f *os.File, next func(*net.UnixConn) (passedMessage, error), tells bool) (*passed, error) {
	conn, err := fileConn(f)
	if err != nil {
		return nil, err
	}
	p := &passed{conn: conn, next: next, tells: tells, calls: make(chan net.Conn, waitingCalls), ended: make(chan struct{}), dials: make(map[uint32]chan net.Conn)}
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
		m, err := p.next(p.conn)
		if err != nil {
			return
		}
		if m.stream != nil && p.tells {
			if _, err := p.conn.Write(make([]byte, passedLen)); err != nil {
				_ = m.stream.Close()
				return
			}
		}
		if m.id == 0 { // a call
			if m.stream == nil {
				continue
			}
			if m.port == wire.PortAgent {
				select {
				case p.calls <- m.stream:
					continue
				default:
				}
			}
			// As a guest's kernel would: nobody listens there.
			_ = m.stream.Close()
			continue
		}
		p.mu.Lock()
		answer := p.dials[m.id]
		delete(p.dials, m.id)
		if answer != nil {
			answer <- m.stream // it has room for the one answer
		}
		p.mu.Unlock()
		if answer == nil && m.stream != nil {
			_ = m.stream.Close() // who asked has given up
		}
	}
}

// passedMessage is one from the host. A call has the id 0, an answer has not.
type passedMessage struct {
	port, id uint32
	stream   net.Conn // nil: none came with it
}

// passedLen is how long a message is that has both numbers.
const passedLen = 8

// packet reads one packet and the stream that came with it, if any.
func packet(from *net.UnixConn) (m passedMessage, err error) {
	var b [passedLen]byte
	for {
		var n int
		if n, m.stream, err = receivePassed(from, b[:]); err != nil {
			return m, err
		}
		switch {
		case n == 4:
			m.port = binary.BigEndian.Uint32(b[:])
			return m, nil
		case n == passedLen && binary.BigEndian.Uint32(b[4:]) != 0:
			m.port, m.id = binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:])
			return m, nil
		case m.stream != nil:
			_ = m.stream.Close() // it is no message
		}
	}
}

// streamed reads one message of a stream, and the stream that came with its
// first byte, if any. It never reads beyond the message: what comes with the next
// one's bytes would come with this one's.
func streamed(from *net.UnixConn) (m passedMessage, err error) {
	var b [passedLen]byte
	for have := 0; have < len(b); {
		n, stream, err := receivePassed(from, b[have:])
		if err == nil && stream != nil && have > 0 {
			_ = stream.Close()
			err = errors.New("a stream came in the middle of a message")
		}
		if err != nil {
			if m.stream != nil {
				_ = m.stream.Close()
			}
			return m, err
		}
		if have == 0 {
			m.stream = stream
		}
		have += n
	}
	m.port, m.id = binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:])
	return m, nil
}

// receivePassed reads what there is, and the stream that came with it, if any.
func receivePassed(from *net.UnixConn, b []byte) (int, net.Conn, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := from.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, nil, err
	}
	if n == 0 {
		return 0, nil, net.ErrClosed
	}
	if oobn == 0 {
		return n, nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return 0, nil, errors.New("a message came with what is not a connection")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return 0, nil, errors.New("a message came with what is not a connection")
	}
	conn, err := fileConn(os.NewFile(uintptr(fds[0]), "stream"))
	if err != nil {
		return 0, nil, err
	}
	return n, conn, nil
}

func fileConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("a %T is no Unix socket", c)
	}
	return u, nil
}

var _ net.Listener = (*passed)(nil)
