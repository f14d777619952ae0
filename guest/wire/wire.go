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
