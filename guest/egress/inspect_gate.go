package egress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
)

// gate stands between a guest and net/http's HTTP/1 server, and lets through only
// requests that can be read in one way. It follows the stream on its own:
//
//	head → (body | chunk size → chunk → chunk end → … → trailer) → head
//	  ├──── a WebSocket is asked for ──── raw
//	  └──── malformed ──── shut
//
// Nothing that it finds is used to decide: net/http reads the same bytes once
// more, that reading is judged, and what was judged is written anew. So a mistake
// here can refuse too much or too little, but cannot make two requests of one.
//
// A malformed head is replaced by a request that is never sent (malformedMethod),
// so that its answer comes after those of the requests before it.
type gate struct {
	net.Conn // what the guest reads; deadlines

	in    *bufio.Reader
	state gateState
	// out is what was checked and has not been read yet.
	out []byte
	// part is the line that is being read, lines are those before it, and size is
	// the length of both: reading may stop in the middle at a deadline.
	part  []byte
	lines []string
	size  int
	// left of the body or chunk.
	left int64
	// why the gate was shut, and, if that was in the middle of a body, the same
	// for whoever carries the body elsewhere.
	why    malformed
	broken atomic.Pointer[malformed]
}

type gateState int

const (
	gateHead gateState = iota
	gateBody
	gateChunkSize
	gateChunk
	gateChunkEnd
	gateTrailer
	gateRaw
	gateShut
)

// malformedMethod is the method of the request that stands for a malformed one.
// goodMethod does not take it, so that a guest cannot send it.
const malformedMethod = "malformed"

// maxTrailer bounds the trailer of a chunked body, in bytes.
const maxTrailer = 8 << 10

func newGate(c net.Conn) *gate {
	return &gate{Conn: c, in: bufio.NewReaderSize(c, 16<<10)}
}

// Read reads what was checked. An error that is malformed says that a body is.
func (g *gate) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if len(g.out) > 0 {
			n := copy(p, g.out)
			g.out = g.out[n:]
			return n, nil
		}
		switch g.state {
		case gateRaw:
			return g.in.Read(p)
		case gateShut:
			return 0, g.why
		case gateBody, gateChunk:
			n, err := g.in.Read(p[:min(int64(len(p)), g.left)])
			if errors.Is(err, io.EOF) {
				return n, io.ErrUnexpectedEOF
			}
			if g.left -= int64(n); g.left == 0 {
				g.state++ // of a chunk: its end
				if g.state != gateChunkEnd {
					g.state = gateHead
				}
			}
			return n, err
		}
		if err := g.next(); err != nil {
			var bad malformed
			if errors.As(err, &bad) {
				g.shut(bad)
				continue
			}
			return 0, err
		}
	}
}

// next reads the next line that frames a request.
func (g *gate) next() error {
	limit := maxHead
	switch g.state {
	case gateTrailer:
		limit = maxTrailer
	case gateChunkSize, gateChunkEnd:
		limit = maxChunkDigits + 2
	}
	line, err := g.line(limit - g.size)
	if err != nil {
		return err
	}
	switch g.state {
	case gateHead, gateTrailer:
		if g.state == gateHead && len(g.lines) == 0 {
			// At once: who speaks another protocol does not wait for the time limit.
			if _, _, err := readRequestLine(line); err != nil {
				return err
			}
		}
		if line != "" {
			g.lines, g.size = append(g.lines, line), g.size+len(line)+2
			return nil
		}
		return g.block()
	case gateChunkSize:
		n, err := readChunkSize(line)
		if err != nil {
			return err
		}
		g.out = append(g.out, line+"\r\n"...)
		if g.left, g.state = n, gateChunk; n == 0 {
			g.state = gateTrailer
		}
	case gateChunkEnd:
		if line != "" {
			return malformed("a chunk is longer than it said")
		}
		g.out, g.state = append(g.out, "\r\n"...), gateChunkSize
	}
	return nil
}

// block checks a whole head or trailer and lets it through.
func (g *gate) block() error {
	lines := g.lines
	g.lines, g.size = nil, 0
	next := gateHead
	if g.state == gateTrailer {
		if len(lines) > maxFields {
			return malformed("it has too many trailer fields")
		}
		for _, l := range lines {
			if _, _, err := readField(l); err != nil {
				return err
			}
		}
	} else {
		f, err := readHeadLines(lines)
		if err != nil {
			return err
		}
		switch {
		case f.raw:
			next = gateRaw
		case f.chunked:
			next = gateChunkSize
		case f.length > 0:
			g.left, next = f.length, gateBody
		}
	}
	for _, l := range lines {
		g.out = append(append(g.out, l...), "\r\n"...)
	}
	g.out, g.state = append(g.out, "\r\n"...), next
	return nil
}

// line reads a line of at most max bytes that ends with CR LF.
func (g *gate) line(max int) (string, error) {
	for {
		frag, err := g.in.ReadSlice('\n')
		if len(g.part)+len(frag) > max {
			if g.state == gateChunkSize || g.state == gateChunkEnd {
				return "", malformed("the size of a chunk is not a plain number, or it has an extension")
			}
			return "", malformed(fmt.Sprintf("its header fields are longer than %d bytes", max+g.size))
		}
		g.part = append(g.part, frag...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && (len(g.part)+g.size > 0 || g.state != gateHead) {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
	line, ok := strings.CutSuffix(string(g.part), "\r\n")
	g.part = g.part[:0]
	switch {
	case !ok:
		return "", malformed("a line of it does not end with CR LF")
	case strings.ContainsAny(line, "\r\x00"):
		return "", malformed("a line of it has a carriage return or a zero byte in it")
	}
	return line, nil
}

// shut ends the stream. A head is answered in its turn; a body is not finished.
func (g *gate) shut(why malformed) {
	if g.state != gateHead {
		g.broken.Store(&why)
	} else {
		g.out = []byte(malformedMethod + " / HTTP/1.1\r\nHost: malformed\r\n\r\n")
	}
	g.state, g.why, g.lines, g.part, g.size = gateShut, why, nil, nil, 0
}

// reason is why the head that a malformedMethod stands for was refused.
func (g *gate) reason() string { return string(g.why) }

// CloseWrite ends what the guest reads.
func (g *gate) CloseWrite() error { return closeWrite(g.Conn) }
