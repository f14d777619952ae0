package egress

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
)

// The first frame is read to its end and not a byte further.
func TestOpen(t *testing.T) {
	for _, o := range []*wire.Open{{Host: "example.org", Port: 443}, {Host: strings.Repeat("a", 900), Port: 1}, {}} {
		var b bytes.Buffer
		if err := wire.Write(&b, o); err != nil {
			t.Fatal(err)
		}
		b.WriteString("raw")
		got, err := readOpen(&b)
		if err != nil || got.Host != o.Host || got.Port != o.Port || b.String() != "raw" {
			t.Errorf("%.20q: %v, %v, %q follows", o.Host, got, err, b.String())
		}
	}
	var long bytes.Buffer
	if err := wire.Write(&long, &wire.Open{Host: strings.Repeat("a", 1100)}); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{"", "\x05", "\x05abc", "\xff\xff\xff\xff\xff\x0f", "\x80", "\x05\xff\xff\xff\xff\xff", long.String()} {
		if o, err := readOpen(strings.NewReader(in)); err == nil {
			t.Errorf("%.20q was read as %v", in, o)
		}
	}
}

func FuzzOpen(f *testing.F) {
	var b bytes.Buffer
	wire.Write(&b, &wire.Open{Host: "example.org", Port: 443, Task: "01ARZ3NDEKTSV4RRFFQ69G5FAV"})
	f.Add(b.Bytes())
	f.Add([]byte("\xff\x7f"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		o, err := readOpen(r)
		if read := len(in) - r.Len(); read > maxOpen+2 {
			t.Fatalf("%d bytes were read", read)
		}
		// protodelim is the other reader.
		want := &wire.Open{}
		werr := protodelim.UnmarshalOptions{MaxSize: maxOpen}.UnmarshalFrom(bytes.NewReader(in), want)
		if err == nil && (werr != nil || want.Host != o.Host || want.Port != o.Port) {
			t.Fatalf("read as %v, protodelim reads %v, %v", o, want, werr)
		}
		if err != nil {
			return
		}
		if h, err := policy.ParseHost(o.Host); err == nil && h.String() == "" {
			t.Fatalf("%q became an empty host", o.Host)
		}
		if taskID(o.Task) != "" && len(o.Task) != 26 {
			t.Fatalf("%q is a task", o.Task)
		}
	})
}

// What a server says first is read the same however it is cut.
func FuzzServerFirst(f *testing.F) {
	hrr := append([]byte{typeServerHello, 0, 0, 70, 3, 3}, helloRetry...)
	f.Add(records(append(hrr, make([]byte, 38)...), maxRecord), 3)
	f.Add(records(append(hrr, make([]byte, 38)...), 1), 1000)
	f.Add([]byte{recordAlert, 3, 3, 0, 2, 2, 40}, 2)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		var whole, parts serverFirst
		retry, known, err := whole.feed(in)
		cut = min(max(cut, 0), len(in))
		r1, k1, e1 := parts.feed(in[:cut])
		if !k1 && e1 == nil {
			r1, k1, e1 = parts.feed(in[cut:])
		}
		if retry != r1 || known != k1 || (err == nil) != (e1 == nil) {
			t.Fatalf("in one piece: %v %v %v, in two: %v %v %v", retry, known, err, r1, k1, e1)
		}
		if len(parts.raw) > 5+maxRecord+len(in) {
			t.Fatal("too much is kept")
		}
	})
}

func TestTaskID(t *testing.T) {
	if taskID("01ARZ3NDEKTSV4RRFFQ69G5FAV") == "" {
		t.Error("a ULID is no task")
	}
	for _, s := range []string{"", "x", "01ARZ3NDEKTSV4RRFFQ69G5FA\n", "01ARZ3NDEKTSV4RRFFQ69G5FAVV", "01arz3ndektsv4rrffq69g5fav"} {
		if taskID(s) != "" {
			t.Errorf("%q is a task", s)
		}
	}
}
