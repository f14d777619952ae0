package egress

import (
	"encoding/binary"
	"net"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/time/rate"
)

// Bounds of what net/http's HTTP/2 server takes without end. All else that a
// guest could flood it with (streams, header fields, window) it bounds itself.
const (
	// maxContinuations is how many frames a head may be spread over.
	maxContinuations = 32
	// controlRate frames a second that carry nothing (resets, pings, settings,
	// priorities, unknown ones) are taken, controlBurst at once.
	controlRate  = 1000
	controlBurst = 4000
)

// frames looks at the frames of HTTP/2 as they are read, and ends a connection
// that is flooded with those that cost a guest nothing. It changes nothing.
type frames struct {
	net.Conn
	pass   int64   // bytes until the next frame's head
	head   [9]byte // RFC 9113, 4.1
	got    int
	parts  int // CONTINUATION frames of this head
	limit  *rate.Limiter
	failed error
}

func newFrames(c net.Conn) *frames {
	return &frames{Conn: c, pass: int64(len(http2.ClientPreface)), limit: rate.NewLimiter(controlRate, controlBurst)}
}

func (f *frames) Read(p []byte) (int, error) {
	if f.failed != nil {
		return 0, f.failed
	}
	n, err := f.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if f.pass > 0 {
			skip := min(f.pass, int64(len(b)))
			f.pass, b = f.pass-skip, b[skip:]
			continue
		}
		c := copy(f.head[f.got:], b)
		f.got, b = f.got+c, b[c:]
		if f.got == len(f.head) {
			f.got = 0
			if f.failed = f.frame(); f.failed != nil {
				return 0, f.failed
			}
		}
	}
	return n, err
}

// frame counts the frame whose head was read.
func (f *frames) frame() error {
	f.pass = int64(binary.BigEndian.Uint32(f.head[:4]) >> 8)
	switch http2.FrameType(f.head[3]) {
	case http2.FrameHeaders:
		f.parts = 0
	case http2.FrameContinuation:
		if f.parts++; f.parts > maxContinuations {
			return malformed("the head of a request is spread over too many frames")
		}
	case http2.FrameData:
		const endStream = 1
		if f.pass == 0 && f.head[4]&endStream == 0 && !f.limit.AllowN(time.Now(), 1) {
			return malformed("too many frames carry nothing")
		}
	case http2.FrameWindowUpdate:
		// As many as there is data.
	default:
		if !f.limit.AllowN(time.Now(), 1) {
			return malformed("too many frames carry nothing")
		}
	}
	return nil
}
