package wire

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func TestFramesReadBack(t *testing.T) {
	var b bytes.Buffer
	for _, s := range []string{"", "a", strings.Repeat("x", DataChunk)} {
		if err := Write(&b, &Input{Kind: &Input_Stdin{Stdin: []byte(s)}}); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&b)
	for _, want := range []int{0, 1, DataChunk} {
		f := new(Input)
		if err := r.Read(f); err != nil || len(f.GetStdin()) != want {
			t.Fatal(err, len(f.GetStdin()))
		}
	}
	if err := r.Read(new(Input)); err != io.EOF {
		t.Fatal(err)
	}
}

// P01: a length that no frame may have is refused before anything is allocated.
func TestLengths(t *testing.T) {
	for _, n := range []uint64{MaxFrame + 1, 1<<31 - 1, 1<<32 - 1, 1 << 40, 1<<64 - 1} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := NewReader(bytes.NewReader(protowire.AppendVarint(nil, n))).Read(new(Output))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrFrame) {
			t.Errorf("length %d: %v", n, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
			t.Errorf("length %d: %d bytes were allocated", n, got)
		}
	}
	// The control: the largest that is allowed, and a short body.
	ok := append(protowire.AppendVarint(nil, 6), 0x12, 4, 'a', 'b', 'c', 'd')
	f := new(Output)
	if err := NewReader(bytes.NewReader(ok)).Read(f); err != nil || string(f.GetStdout()) != "abcd" {
		t.Fatal(err, f)
	}
	if err := NewReader(bytes.NewReader(ok[:4])).Read(new(Output)); err != io.ErrUnexpectedEOF {
		t.Fatalf("short body: %v", err)
	}
	if err := Write(io.Discard, &Output{Kind: &Output_Stdout{Stdout: make([]byte, MaxFrame)}}); !errors.Is(err, ErrFrame) {
		t.Fatalf("too large to send: %v", err)
	}
}

func TestText(t *testing.T) {
	for _, c := range []struct {
		in, want string
		max      int
	}{
		{"plain", "plain", 10},
		{"two\nlines\tand", "two lines and", 20},
		{"\x1b]52;c;YQ==\x07", "?]52;c;YQ==?", 20},
		{"a\u202eb", "a?b", 20},
		{"\xff\xfe", "??", 20},
		{"éééé", "éé", 5},
	} {
		if got := Text(c.in, c.max); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	Write(&b, &Output{Kind: &Output_Exit{Exit: &Exit{Code: 1}}})
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		for r, i := NewReader(bytes.NewReader(p)), 0; i < 100; i++ {
			if r.Read(new(Output)) != nil {
				break
			}
		}
		for r, i := NewReader(bytes.NewReader(p)), 0; i < 100; i++ {
			if r.Read(new(FromGuest)) != nil {
				break
			}
		}
		sameOutput(t, p)
	})
}

// A frame of output is the same whoever writes it, and says the same whoever reads it.
func TestOutputFrames(t *testing.T) {
	var plain, chunked bytes.Buffer
	c := NewChunk()
	for _, n := range []int{1, 127, 128, 4096, DataChunk} {
		p := bytes.Repeat([]byte{byte(n)}, n)
		for _, isErr := range []bool{false, true} {
			m := &Output{Kind: &Output_Stdout{Stdout: p}}
			if isErr {
				m = &Output{Kind: &Output_Stderr{Stderr: p}}
			}
			if err := Write(&plain, m); err != nil {
				t.Fatal(err)
			}
			copy(c.Room(), p)
			if err := c.WriteOutput(&chunked, n, isErr); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(plain.Bytes(), chunked.Bytes()) {
		t.Fatal("frames differ with who writes them")
	}
	// The largest, which no buffer of a reader holds, an empty one, and something else.
	for _, m := range []*Output{
		{Kind: &Output_Stdout{Stdout: make([]byte, MaxFrame-8)}}, {Kind: &Output_Stderr{}}, {Kind: &Output_StdinTaken{StdinTaken: 3}}, {},
	} {
		if err := Write(&plain, m); err != nil {
			t.Fatal(err)
		}
	}
	sameOutput(t, plain.Bytes())
}

// sameOutput holds what ReadOutput makes of bytes to what Read makes of them.
func sameOutput(t *testing.T, b []byte) {
	t.Helper()
	one, other := NewReader(bytes.NewReader(b)), NewReader(iotest.OneByteReader(bytes.NewReader(b)))
	for {
		want, m := new(Output), new(Output)
		werr := one.Read(want)
		p, isErr, err := other.ReadOutput(m)
		if (err == nil) != (werr == nil) || errors.Is(err, ErrFrame) != errors.Is(werr, ErrFrame) || errors.Is(err, io.EOF) != errors.Is(werr, io.EOF) {
			t.Fatalf("%v, want %v", err, werr)
		}
		if err != nil {
			return
		}
		wp, wErr := want.GetStdout(), false
		switch k := want.Kind.(type) {
		case *Output_Stdout:
		case *Output_Stderr:
			wp, wErr = k.Stderr, true
		default:
			if p != nil || !proto.Equal(m, want) {
				t.Fatalf("%v and %d bytes, want %v", m, len(p), want)
			}
			continue
		}
		if p == nil || isErr != wErr || !bytes.Equal(p, wp) {
			t.Fatalf("%d bytes, of the standard error %v; want %d, %v", len(p), isErr, len(wp), wErr)
		}
	}
}
