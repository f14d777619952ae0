// Package wire is the contract between a keeper and the agent in its guest:
// framed protobuf messages with a bound that is checked before anything is
// allocated.
package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Version of the wire. Host and guest come from the same build, so there is
// only one; an image that was built by another may speak another. It is raised
// with each question that an older agent would answer wrongly: 2 has looks at
// files, and claims.
const Version = 2

// Ports of the guest's vsock, below 1024 so that no task can bind them.
const (
	// PortBoot is where the host waits for the guest's one boot stream.
	PortBoot = 64
	// PortAgent is where the agent takes calls.
	PortAgent = 64
	// PortEgress is where the host will take streams to the outside.
	PortEgress = 65
	// PortShare is where the host takes streams of shares (Attach).
	PortShare = 66
)

// Bounds.
const (
	// MaxFrame is the largest frame, in bytes.
	MaxFrame = 1 << 20
	// DataChunk is how many bytes of a stream one frame carries at most.
	DataChunk = 64 << 10
	// StdinWindow is how much stdin may be on its way, in bytes.
	StdinWindow = 256 << 10
	// MaxPart is the most that one read of a part of a file brings, in bytes.
	MaxPart = 1 << 20
	// MaxLook is how many entries of a folder a look shows. A folder may have
	// millions; whoever wants them all copies it.
	MaxLook = 10000

	// MaxText is the longest text from the guest that the host keeps, in bytes.
	MaxText = 1024
)

// ErrFrame is returned for a frame that is too large or not a message.
var ErrFrame = errors.New("bad frame")

// Reader reads frames.
type Reader struct {
	r    *bufio.Reader
	opts protodelim.UnmarshalOptions
}

// NewReader returns a Reader of frames of at most MaxFrame bytes.
func NewReader(r io.Reader) *Reader {
	return &Reader{
		r:    bufio.NewReaderSize(r, DataChunk+64),
		opts: protodelim.UnmarshalOptions{MaxSize: MaxFrame},
	}
}

// Read reads the next frame into m. io.EOF means that the stream ended
// between two frames; anything malformed is an ErrFrame.
func (r *Reader) Read(m proto.Message) error {
	err := r.opts.UnmarshalFrom(r.r, m)
	var large *protodelim.SizeTooLargeError
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case errors.As(err, &large) || errors.Is(err, proto.Error):
		return fmt.Errorf("%w: %v", ErrFrame, err)
	}
	return err
}

// ReadOutput reads the next frame of a task's output. Of one of stdout or stderr it
// returns the bytes, never nil, which mostly lie in the reader's own buffer: they are
// good until the next call. Any other frame is in m.
func (r *Reader) ReadOutput(m *Output) (p []byte, isErr bool, err error) {
	if p, isErr, ok := r.peekOutput(); ok {
		return p, isErr, nil
	}
	if err := r.Read(m); err != nil {
		return nil, false, err
	}
	switch k := m.Kind.(type) {
	case *Output_Stdout:
		p = k.Stdout
	case *Output_Stderr:
		p, isErr = k.Stderr, true
	default:
		return nil, false, nil
	}
	if p == nil {
		p = []byte{}
	}
	return p, isErr, nil
}

// Fields of Output.
const (
	fieldStdout = 2
	fieldStderr = 3
)

// peekOutput takes a frame that is written as WriteOutput does and fits into the
// buffer. All else, errors too, it leaves to Read.
func (r *Reader) peekOutput() (p []byte, isErr, ok bool) {
	var size uint64
	n := -1
	for k := 1; n < 0; k++ {
		b, err := r.r.Peek(k)
		if err != nil || k > 4 { // longer than any frame of DataChunk
			return nil, false, false
		}
		size, n = protowire.ConsumeVarint(b)
	}
	if size > uint64(r.r.Size()-n) {
		return nil, false, false
	}
	b, err := r.r.Peek(n + int(size))
	if err != nil {
		return nil, false, false
	}
	field, kind, t := protowire.ConsumeTag(b[n:])
	if t < 0 || kind != protowire.BytesType || field != fieldStdout && field != fieldStderr {
		return nil, false, false
	}
	p, l := protowire.ConsumeBytes(b[n+t:])
	if l < 0 || n+t+l != len(b) {
		return nil, false, false
	}
	r.r.Discard(len(b)) // what was peeked stays where it is until more is read
	return p, field == fieldStderr, true
}

// Chunk is room for one frame of a task's output, with the bytes where they are sent
// from.
type Chunk struct{ b []byte }

// chunkHead is the most that comes before the bytes: two lengths and a tag.
const chunkHead = 2*4 + 1

// NewChunk returns one.
func NewChunk() *Chunk { return &Chunk{make([]byte, chunkHead+DataChunk)} }

// Room is where up to DataChunk bytes are to be put.
func (c *Chunk) Room() []byte { return c.b[chunkHead:] }

// WriteOutput writes the first n bytes of the room as one frame in one call of w.Write.
func (c *Chunk) WriteOutput(w io.Writer, n int, isErr bool) error {
	field := protowire.Number(fieldStdout)
	if isErr {
		field = fieldStderr
	}
	var room [chunkHead]byte
	size := protowire.SizeTag(field) + protowire.SizeBytes(n)
	head := protowire.AppendVarint(room[:0], uint64(size))
	head = protowire.AppendVarint(protowire.AppendTag(head, field, protowire.BytesType), uint64(n))
	copy(c.b[chunkHead-len(head):], head)
	_, err := w.Write(c.b[chunkHead-len(head) : chunkHead+n])
	return err
}

// Buffered is how many bytes have come that Read has not returned yet.
func (r *Reader) Buffered() int { return r.r.Buffered() }

// Write writes m as one frame in one call of w.Write.
func Write(w io.Writer, m proto.Message) error {
	n := proto.Size(m)
	if n > MaxFrame {
		return fmt.Errorf("%w: %d bytes to send, %d is the limit", ErrFrame, n, MaxFrame)
	}
	b := protowire.AppendVarint(make([]byte, 0, n+protowire.SizeVarint(uint64(n))), uint64(n))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, m)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
