package share

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Bounds of a stream carrier.
const (
	// streamWorkers is how many messages of one stream are under way at once:
	// one more would find no processor (prototype: four were enough).
	streamWorkers = 4
	// streamBuffer is what is read at once; of a longer message the rest goes
	// straight to where it is wanted.
	streamBuffer = 16 << 10
	// streamPatience is how long a guest may take to read a reply.
	streamPatience = 30 * time.Second
)

// ErrStream is returned for a stream that holds something else than FUSE.
var ErrStream = errors.New("share: not a FUSE message")

// ServeStream answers the raw FUSE messages of a stream until it ends, ctx is
// done or the server is closed. Messages carry their own length, so that there
// is no frame around them; replies come in any order and are told apart by
// their number. When it returns, no message of this stream is under way, the
// session is over and every handle is closed. It closes c.
//
//  1. one of four workers reads a whole message while the others wait their turn
//  2. it lets the next one read, and answers
//  3. it writes the reply, whole, and gets in line again
//
// A guest that does not read its replies holds up its own workers, and loses
// the stream after 30 s.
func (s *Server) ServeStream(ctx context.Context, c net.Conn) error {
	return s.carry(ctx, &stream{c: c, in: bufio.NewReaderSize(c, streamBuffer)})
}

// carrier is where messages come from and replies go to.
type carrier interface {
	// next reads one message into in, which it may replace by a larger one.
	next(in []byte) ([]byte, error)
	reply(out []byte) error
	close()
}

// carry serves a carrier with streamWorkers workers.
func (s *Server) carry(ctx context.Context, c carrier) error {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	var reading, ending sync.Mutex
	var first error
	end := func(err error) {
		ending.Lock()
		if first == nil {
			first = err
		}
		ending.Unlock()
		c.close() // the other workers notice
	}
	var workers sync.WaitGroup
	for range streamWorkers {
		workers.Go(func() { end(s.work(&reading, c)) })
	}
	workers.Wait()
	s.Reset()
	if first == io.EOF || ctx.Err() != nil {
		return nil
	}
	return first
}

// work answers messages until the carrier ends.
func (s *Server) work(reading *sync.Mutex, c carrier) error {
	var in []byte
	out := make([]byte, MaxMessage)
	for {
		reading.Lock()
		m, err := c.next(in)
		reading.Unlock()
		if err != nil {
			return err
		}
		in = m[:cap(m)]
		if n := s.Serve(m, out); n > 0 {
			if err := c.reply(out[:n]); err != nil {
				return err
			}
		}
		if err := s.Err(); err != nil {
			return err // the one who asked has its EIO
		}
	}
}

// stream is a carrier over a connection.
type stream struct {
	c    net.Conn
	in   *bufio.Reader // small messages, several at once if they came together
	mu   sync.Mutex    // one reply at a time
	once sync.Once
}

func (t *stream) close() { t.once.Do(func() { t.c.Close() }) }

func (t *stream) next(in []byte) ([]byte, error) {
	head, err := t.in.Peek(4)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, ended(err)
	}
	n := le.Uint32(head)
	if n < inHeaderSize || n > MaxMessage {
		return nil, fmt.Errorf("%w: it says that it has %d bytes", ErrStream, n)
	}
	if int(n) > len(in) {
		in = make([]byte, max(int(n), 4<<10))
	}
	if _, err := io.ReadFull(t.in, in[:n]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, ended(err)
	}
	return in[:n], nil
}

// ended turns the ways in which a stream ends in order into io.EOF.
func ended(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return io.EOF
	}
	return err
}

func (t *stream) reply(out []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.c.SetWriteDeadline(time.Now().Add(streamPatience))
	if _, err := t.c.Write(out); err != nil {
		return fmt.Errorf("share: reply: %w", ended(err))
	}
	return nil
}
