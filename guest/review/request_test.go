package review

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

func TestRequestGoesThrough(t *testing.T) {
	in := Request{
		Guest:  "g",
		Shares: []ShareRef{{Path: "/p", Dev: 1, Ino: 1<<64 - 1, Store: "/s", GuestPath: "/g", Rules: rules.Options{Mode: rules.NoDelete, Hide: []rules.List{{Pattern: "a", Origin: "b"}}}}},
		Apply:  &api.ApplyRequest{Guest: "g", Paths: []string{"/p/a"}, AcceptWarnings: true},
	}
	var b bytes.Buffer
	if err := WriteRequest(&b, in); err != nil {
		t.Fatal(err)
	}
	out, err := ReadRequest(&b)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(out.Apply, in.Apply) || out.Shares[0].Ino != in.Shares[0].Ino || out.Shares[0].Rules.Hide[0].Origin != "b" || out.Diff != nil {
		t.Errorf("%+v", out)
	}
	for _, bad := range []string{"", "{}", `{"Guest":"g","Diff":{},"Undo":{}}`, `{"Diff":{"nonsense":1}}`, `{"More":1,"Diff":{}}`} {
		if _, err := ReadRequest(bytes.NewReader([]byte(bad))); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// An end is said: what is cut off anywhere is no good end.
func TestAnswersEnd(t *testing.T) {
	for _, end := range []error{nil, &Error{"conflict", "it changed", "look again"}, errors.New("other")} {
		var b bytes.Buffer
		a := NewAnswers(&b)
		if err := errors.Join(a.Emit(&api.Change{Path: "/a"}), a.Emit(&api.Change{Path: "/b"}), a.End(end)); err != nil {
			t.Fatal(err)
		}
		whole := b.Bytes()
		for cut := range len(whole) + 1 {
			r, n := bufio.NewReader(bytes.NewReader(whole[:cut])), 0
			var err error
			for m := new(api.Change); ; n++ {
				if err = ReadAnswer(r, m); err != nil {
					break
				}
			}
			var own *Error
			switch {
			case cut < len(whole) && !errors.Is(err, ErrTruncated):
				t.Fatalf("cut after %d of %d bytes: %v", cut, len(whole), err)
			case cut == len(whole) && (n != 2 || end == nil && err != io.EOF || end != nil && !errors.As(err, &own)):
				t.Fatalf("%v: %d answers and %v", end, n, err)
			}
		}
	}
	if err := NewAnswers(io.Discard).Emit(&api.Change{Diff: string(make([]byte, maxAnswer+1))}); err == nil {
		t.Error("an answer without bound")
	}
}
