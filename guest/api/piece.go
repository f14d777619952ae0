package api

import (
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A Piece is a message of an attach as it came. Nearly all are bytes of output and
// an offset: those are looked at where they lie, and can be passed on as they are,
// instead of being copied into a message each and out of it again. It is received
// with a stream's Conn, whose client or handler has the option Pieces; one Piece
// serves for a whole stream.
type Piece struct {
	// Data is what the task wrote, and Err says that it did so to its standard
	// error. It is good until the next message.
	Data []byte
	Err  bool
	// Next is the message's.
	Next int64
	// Other is the message if it is anything else, or not written as ours are;
	// nothing but Next is set beside it.
	Other *AttachResponse

	raw []byte
}

// Pieces has a client or a handler know pieces. It changes nothing else.
func Pieces() connect.Option { return connect.WithCodec(pieces{}) }

// Message is the piece as a message.
func (p *Piece) Message() *AttachResponse {
	switch {
	case p.Other != nil:
		return p.Other
	case p.Err:
		return &AttachResponse{Kind: &AttachResponse_Stderr{Stderr: p.Data}, Next: p.Next}
	}
	return &AttachResponse{Kind: &AttachResponse_Stdout{Stdout: p.Data}, Next: p.Next}
}

// Fields of AttachResponse.
const (
	pieceStdout = 1
	pieceStderr = 2
	pieceNext   = 5
)

func (p *Piece) take(b []byte) error {
	raw := append(p.raw[:0], b...)
	*p = Piece{raw: raw}
	if p.plain() {
		return nil
	}
	*p = Piece{raw: raw, Other: new(AttachResponse)}
	if err := proto.Unmarshal(raw, p.Other); err != nil {
		return err
	}
	p.Next = p.Other.Next
	return nil
}

// plain says whether the message is output and an offset, and the very bytes that
// these two make, which is in this order: what is passed on is then what would have
// been made anew. It sets them.
func (p *Piece) plain() bool {
	rest, want := p.raw, 0
	field, kind, n := protowire.ConsumeTag(rest)
	if n >= 0 && field == pieceNext && kind == protowire.VarintType {
		next, m := protowire.ConsumeVarint(rest[n:])
		if m < 0 || next == 0 {
			return false
		}
		p.Next = int64(next)
		want = protowire.SizeTag(field) + protowire.SizeVarint(next)
		rest = rest[n+m:]
		field, kind, n = protowire.ConsumeTag(rest)
	}
	if n < 0 || kind != protowire.BytesType || field != pieceStdout && field != pieceStderr {
		return false
	}
	data, m := protowire.ConsumeBytes(rest[n:])
	if m < 0 || n+m != len(rest) {
		return false
	}
	p.Data, p.Err = data, field == pieceStderr
	return want+protowire.SizeTag(field)+protowire.SizeBytes(len(data)) == len(p.raw)
}

// pieces is connect's codec of protobuf messages, which also knows pieces.
type pieces struct{}

func (pieces) Name() string { return "proto" }

func (c pieces) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

func (pieces) MarshalAppend(b []byte, m any) ([]byte, error) {
	switch m := m.(type) {
	case *Piece:
		return append(b, m.raw...), nil
	case proto.Message:
		return proto.MarshalOptions{}.MarshalAppend(b, m)
	}
	return nil, fmt.Errorf("%T is no message", m)
}

func (pieces) Unmarshal(b []byte, m any) error {
	var err error
	switch m := m.(type) {
	case *Piece:
		err = m.take(b)
	case proto.Message:
		err = proto.Unmarshal(b, m)
	default:
		err = fmt.Errorf("%T is no message", m)
	}
	if err != nil {
		return fmt.Errorf("unmarshal into %T: %w", m, err)
	}
	return nil
}
