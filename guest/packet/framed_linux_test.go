package packet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func framedEnds(t *testing.T) (a *framed, b *framed) {
	t.Helper()
	x, y, err := framedPair()
	if err != nil {
		t.Fatal(err)
	}
	end := func(f *os.File) *framed {
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		p := newFramed(c.(*net.UnixConn))
		t.Cleanup(func() { p.Close() })
		_ = p.SetReadDeadline(time.Now().Add(5 * time.Minute))
		return p
	}
	return end(x), end(y)
}

// TestFramed: packets of all sizes and their files arrive, and a file that was
// sent stays open until it has.
func TestFramed(t *testing.T) {
	a, b := framedEnds(t)
	sizes := []int{1, 2, 4096, Max - 1, Max}
	var sender sync.WaitGroup
	sender.Go(func() {
		for _, n := range sizes {
			r, w, err := os.Pipe()
			if err == nil {
				_, err = w.WriteString("hi")
			}
			if err == nil {
				err = a.Send(bytes.Repeat([]byte{byte(n)}, n), r)
			}
			if err == nil {
				err = a.Send([]byte("between"), nil)
			}
			if err != nil {
				t.Error(err)
			}
			r.Close()
			w.Close()
		}
		a.CloseWrite()
	})
	for _, n := range sizes {
		got, f, err := b.Receive()
		if err != nil || len(got) != n || got[n-1] != byte(n) || f == nil {
			t.Fatalf("%d bytes of %d, %v, %v", len(got), n, f, err)
		}
		if text, err := io.ReadAll(f); string(text) != "hi" || err != nil {
			t.Errorf("%q, %v", text, err)
		}
		f.Close()
		if got, f, err := b.Receive(); string(got) != "between" || f != nil || err != nil {
			t.Fatalf("%q, %v, %v", got, f, err)
		}
	}
	if _, _, err := b.Receive(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	sender.Wait()
	if len(a.sent) != len(sizes) {
		t.Errorf("%d files are kept before anybody said that they arrived", len(a.sent))
	}
	b.CloseWrite()
	if _, _, err := a.Receive(); err != io.EOF {
		t.Errorf("the other way: %v", err)
	}
	if len(a.sent) != 0 {
		t.Errorf("%d files are kept", len(a.sent))
	}
	for _, n := range []int{0, Max + 1} {
		if err := b.Send(make([]byte, n), nil); !errors.Is(err, ErrPacket) {
			t.Errorf("%d bytes are sent: %v", n, err)
		}
	}
}

// TestFramedHostile: what Send cannot have sent ends the connection, and leaves
// no file open.
func TestFramedHostile(t *testing.T) {
	for name, tc := range map[string]struct {
		bytes []byte
		files int
		at    int // the byte with which they come
	}{
		"too long":            {[]byte{0, 2, 0, 0}, 0, 0},
		"an arrival of none":  {[]byte{0, 0, 0, 0}, 0, 0},
		"a file and nothing":  {[]byte{0, 0, 0, 0}, 1, 0},
		"two files":           {[]byte{0, 0, 0, 1, 'x'}, 2, 0},
		"a file in a packet":  {[]byte{0, 0, 0, 2, 'x', 'y'}, 1, 5},
		"the end in a length": {[]byte{0, 0}, 0, 0},
		"the end in a packet": {[]byte{0, 0, 0, 2, 'x'}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := framedEnds(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for i, c := range tc.bytes {
				var oob []byte
				if i == tc.at && tc.files > 0 {
					oob = unix.UnixRights([]int{int(w.Fd()), int(w.Fd())}[:tc.files]...)
				}
				if _, _, err := a.c.WriteMsgUnix([]byte{c}, oob, nil); err != nil {
					t.Fatal(err)
				}
			}
			w.Close()
			a.CloseWrite()
			got, f, err := b.Receive()
			if err == nil || err == io.EOF {
				t.Errorf("%q, %v, %v", got, f, err)
			}
			b.Close()
			_ = r.SetReadDeadline(time.Now().Add(5 * time.Minute))
			if _, err := r.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("a file is left open: %v", err)
			}
		})
	}
}
