package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// copyChunk is how much is read at once, in bytes.
const copyChunk = 64 << 10

// After spliceAfter bytes without a pause the kernel carries them on by itself,
// until nothing comes for splicePause: a splice holds a pipe, and an idle
// connection should hold nothing.
const (
	spliceAfter = 1 << 20
	splicePause = 200 * time.Millisecond
	// maxSplices is how many there are at once. Go's pipes hold 1 MiB each, and with
	// 64 MiB of them all further pipes of the user's get small: pipe(7).
	maxSplices = 16
)

var chunks = sync.Pool{New: func() any { return new([copyChunk]byte) }}

var (
	errIdle  = errors.New("no byte went either way for too long")
	errMaxUp = errors.New("it sent more than the rule allows")
)

// flow is one direction of a connection.
type flow struct {
	c        *conn
	dst, src net.Conn
	count    *atomic.Int64
	up       bool
	other    *atomic.Bool // the other direction has ended
}

// run copies until src ends, and then ends what dst is sent. ctx ends a wait for
// the rate; the sockets end all else.
func (f *flow) run(ctx context.Context) error {
	streak := 0
	for {
		n, err := f.step(ctx)
		if streak += n; n < copyChunk/4 {
			streak = 0
		}
		if err == nil && streak > spliceAfter && f.unbound() {
			streak = 0
			err = f.splice()
		}
		switch {
		case errors.Is(err, io.EOF):
			return closeWrite(f.dst)
		case errors.Is(err, os.ErrDeadlineExceeded):
			if f.tired() {
				return errIdle
			}
		case err != nil:
			return err
		}
	}
}

// tired says whether no byte has gone either way for too long.
func (f *flow) tired() bool {
	limit := idleLimit
	if f.other.Load() {
		limit = halfIdleLimit
	}
	return f.c.idle() >= limit
}

// wait waits for bytes, without a buffer where the system can. The other
// direction may end meanwhile: os.ErrDeadlineExceeded says to look again.
func (f *flow) wait() error {
	f.src.SetReadDeadline(time.Now().Add(halfIdleLimit / 2))
	return readable(f.src)
}

// step waits for bytes and moves them.
func (f *flow) step(ctx context.Context) (int, error) {
	if err := f.wait(); err != nil {
		return 0, err
	}
	buf := chunks.Get().(*[copyChunk]byte)
	defer chunks.Put(buf)
	b := buf[:]
	slow := f.slow()
	for _, l := range slow {
		b = b[:min(len(b), l.Burst())]
	}
	n, err := f.src.Read(b)
	if n == 0 {
		return 0, err
	}
	for _, l := range slow {
		if err := l.WaitN(ctx, n); err != nil {
			return 0, err
		}
	}
	if f.up {
		if limit := f.c.maxUp.Load(); limit > 0 && f.count.Load()+int64(n) > limit {
			return 0, errMaxUp
		}
	}
	f.dst.SetWriteDeadline(time.Now().Add(idleLimit))
	w, werr := f.dst.Write(b[:n])
	f.c.moves(f.count, int64(w))
	if werr != nil {
		if errors.Is(werr, os.ErrDeadlineExceeded) {
			werr = errIdle
		}
		return w, werr
	}
	return w, err
}

// slow returns the rates of this direction.
func (f *flow) slow() []*rate.Limiter {
	var out []*rate.Limiter
	for _, r := range *f.c.slow.Load() {
		if f.up {
			out = append(out, r.up)
		} else {
			out = append(out, r.down)
		}
	}
	return out
}

// unbound says whether bytes may go unseen.
func (f *flow) unbound() bool {
	return len(*f.c.slow.Load()) == 0 && (!f.up || f.c.maxUp.Load() == 0)
}

// splice moves bytes in the kernel until there is a pause. It returns nil then.
func (f *flow) splice() error {
	select {
	case f.c.s.splices <- struct{}{}:
		defer func() { <-f.c.s.splices }()
	default:
		return nil
	}
	for f.unbound() {
		f.src.SetReadDeadline(time.Now().Add(splicePause))
		f.dst.SetWriteDeadline(time.Now().Add(idleLimit))
		var n int64
		var err error
		switch dst, src := f.dst, f.src; {
		case asTCP(dst) != nil && (asTCP(src) != nil || asUnix(src) != nil):
			n, err = asTCP(dst).ReadFrom(io.LimitReader(src, spliceAfter<<4))
			if err == nil && n == 0 {
				err = io.EOF
			}
		case asUnix(dst) != nil && asTCP(src) != nil:
			n, err = asTCP(src).WriteTo(dst)
			if err == nil {
				err = io.EOF
			}
		default:
			return nil
		}
		f.c.moves(f.count, n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if n > 0 {
				continue
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func asTCP(c net.Conn) *net.TCPConn   { t, _ := c.(*net.TCPConn); return t }
func asUnix(c net.Conn) *net.UnixConn { u, _ := c.(*net.UnixConn); return u }

// moves counts bytes.
func (c *conn) moves(count *atomic.Int64, n int64) {
	if n > 0 {
		count.Add(n)
		c.moved.Store(int64(time.Since(c.started)))
	}
}

// idle is how long no byte has gone either way.
func (c *conn) idle() time.Duration {
	return time.Since(c.started) - time.Duration(c.moved.Load())
}

// closeWrite ends what is sent on a connection, and leaves the other direction.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
