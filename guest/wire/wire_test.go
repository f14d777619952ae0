package wire

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
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
	})
}
