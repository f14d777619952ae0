package api

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func pieceOf(t testing.TB, m *AttachResponse) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Output is taken where it lies, all else as a message; both say what was sent.
func TestPieces(t *testing.T) {
	p := new(Piece) // one for all: nothing of the one before is left
	for _, c := range []struct {
		m     *AttachResponse
		plain bool
	}{
		{&AttachResponse{Kind: &AttachResponse_Stdout{Stdout: []byte("out")}, Next: 300}, true},
		{&AttachResponse{Kind: &AttachResponse_Stderr{Stderr: bytes.Repeat([]byte("e"), 1<<20)}, Next: 1 << 62}, true},
		{&AttachResponse{Kind: &AttachResponse_Dropped{Dropped: 5}, Next: 7}, false},
		{&AttachResponse{Kind: &AttachResponse_Stdout{}, Next: 7}, true},
		{&AttachResponse{Kind: &AttachResponse_Stdout{Stdout: []byte("x")}}, true},
		{&AttachResponse{Kind: &AttachResponse_Stdout{Stdout: []byte("x")}, Next: -1}, true},
		{&AttachResponse{Kind: &AttachResponse_End{End: &Task{Id: "T"}}, Next: 8}, false},
		{&AttachResponse{Kind: &AttachResponse_Notice{Notice: "a line"}}, false},
		{&AttachResponse{Next: 9}, false},
	} {
		b := pieceOf(t, c.m)
		if err := (pieces{}).Unmarshal(b, p); err != nil {
			t.Fatal(err)
		}
		if got := p.Message(); !proto.Equal(got, c.m) || p.Next != c.m.Next || p.Other == nil != c.plain {
			t.Errorf("%v became %v, next %d, plain %v", c.m, got, p.Next, p.Other == nil)
		}
		if out, err := (pieces{}).Marshal(p); err != nil || !bytes.Equal(out, b) {
			t.Errorf("%v is not passed on as it came: %v", c.m, err)
		}
	}
	if (pieces{}).Unmarshal([]byte{0xff}, p) == nil {
		t.Error("what is no message was taken for one")
	}
	if (pieces{}).Unmarshal(nil, "text") == nil {
		t.Error("what can hold no message took one")
	}
	if _, err := (pieces{}).Marshal("text"); err == nil {
		t.Error("what is no message was sent")
	}
}

// Whatever comes, a piece says what the message says, and is plain only if a message
// made anew would be the same bytes.
func FuzzPiece(f *testing.F) {
	f.Add(pieceOf(f, &AttachResponse{Kind: &AttachResponse_Stdout{Stdout: []byte("out")}, Next: 300}))
	f.Add(pieceOf(f, &AttachResponse{Kind: &AttachResponse_Stderr{Stderr: []byte("err")}}))
	f.Add(append(pieceOf(f, &AttachResponse{Kind: &AttachResponse_Stdout{Stdout: []byte("a")}}), pieceOf(f, &AttachResponse{Kind: &AttachResponse_Stderr{Stderr: []byte("b")}, Next: 1})...))
	f.Add([]byte{0x28, 0x81, 0x00, 0x0a, 0x01, 'x'})                              // a number of more bytes than it needs
	f.Add(append(protowire.AppendTag(nil, 1, protowire.BytesType), 0x81, 0, 'x')) // a length of more
	f.Fuzz(func(t *testing.T, b []byte) {
		p, want := new(Piece), new(AttachResponse)
		err, werr := (pieces{}).Unmarshal(b, p), proto.Unmarshal(b, want)
		if (err == nil) != (werr == nil) {
			t.Fatalf("%v, but %v", err, werr)
		}
		if err != nil {
			return
		}
		if !proto.Equal(p.Message(), want) || p.Next != want.Next {
			t.Fatalf("%v, want %v", p.Message(), want)
		}
		if p.Other == nil && !bytes.Equal(pieceOf(t, want), b) {
			t.Fatalf("%x is passed on, and would be %x", b, pieceOf(t, want))
		}
	})
}
