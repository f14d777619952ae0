package link

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDecode(t *testing.T) {
	good := []struct {
		in   string
		conn bool
	}{
		{`{"kind":"stream"}`, true},
		{`{"kind":"forward","port":80}`, true},
		{`{"kind":"refused","line":"no"}`, false},
		{`{"kind":"refused","task":"01JD8Q8ZV6Q2W7KXS2M0T4RBNE","line":"no"}`, false},
		{`{"kind":"hello","trust":"QQ==","more":true}`, false},
		{`{"kind":"hello"}`, false},
		{`{"kind":"ended"}`, false},
		{`{"kind":"ask"}`, false},
		{`{"kind":"told"}`, false},
		{`{"kind":"ports"}`, false},
		{`{"kind":"ports","count":64}`, false},
	}
	for _, g := range good {
		if _, err := decode([]byte(g.in), g.conn); err != nil {
			t.Errorf("%s: %v", g.in, err)
		}
		if _, err := decode([]byte(g.in), !g.conn); !errors.Is(err, ErrMessage) {
			t.Errorf("%s, a connection %v: %v", g.in, !g.conn, err)
		}
	}
	for _, in := range []string{
		``, `{}`, `[]`, `null`, `{"kind":"exec"}`, `{"kind":"stream","port":1}`, `{"kind":"stream"}{"kind":"stream"}`,
		`{"kind":"stream","other":1}`, `{"kind":"refused"}`, `{"kind":"refused","line":"` + strings.Repeat("a", MaxLine+1) + `"}`,
		`{"kind":"refused","task":"../x","line":"no"}`, `{"kind":"forward"}`, `{"kind":"forward","port":65536}`, `{"kind":"forward","port":1,"line":"x"}`,
		`{"kind":"hello","line":"x"}`, `{"kind":"hello","count":1}`, `{"kind":"ended","count":1}`, `{"kind":"ask","count":1}`, `{"kind":"told","line":"x"}`, `{"kind":"ports","count":-1}`, `{"kind":"ports","count":65537}`, `{"kind":"refused","line":"x","count":1}`, `{"kind":"hello","trust":"!"}`,
	} {
		for _, conn := range []bool{true, false} {
			if m, err := decode([]byte(in), conn); !errors.Is(err, ErrMessage) {
				t.Errorf("%.80s: %v %v", in, m, err)
			}
		}
	}
}

func TestTrustIsBounded(t *testing.T) {
	var tr Trust
	piece := &Message{Kind: Hello, Trust: make([]byte, trustBit), More: true}
	for range MaxTrust / trustBit {
		if done, err := tr.Add(piece); done || err != nil {
			t.Fatal(done, err)
		}
	}
	if _, err := tr.Add(piece); !errors.Is(err, ErrMessage) {
		t.Fatalf("one piece too many: %v", err)
	}
	tr = Trust{}
	if _, err := tr.Add(&Message{Kind: Refused, Line: "x"}); !errors.Is(err, ErrMessage) {
		t.Fatalf("not hello: %v", err)
	}
	if done, err := tr.Add(&Message{Kind: Hello, Trust: []byte("a")}); !done || err != nil || string(tr.PEM()) != "a" {
		t.Fatal(done, err)
	}
	if _, err := tr.Add(&Message{Kind: Hello}); !errors.Is(err, ErrMessage) {
		t.Fatalf("a second hello: %v", err)
	}
}

// FuzzDecode: what is taken is within its bounds, and says the same again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"stream"}`), true)
	f.Add([]byte(`{"kind":"refused","task":"A1","line":"no"}`), false)
	f.Add([]byte(`{"kind":"hello","trust":"QUJD","more":true}`), false)
	f.Fuzz(func(t *testing.T, b []byte, conn bool) {
		m, err := decode(b, conn)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if len(m.Line) > MaxLine || len(m.Task) > maxTask || len(m.Trust) > trustBit {
			t.Fatalf("out of bounds: %+v", m)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		n, err := decode(again, conn)
		if err != nil || n.Kind != m.Kind || n.Line != m.Line || n.Task != m.Task || n.Port != m.Port || n.More != m.More || !bytes.Equal(n.Trust, m.Trust) {
			t.Fatalf("%s became %+v, %v", again, n, err)
		}
	})
}
