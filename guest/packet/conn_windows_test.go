package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/inherit"
)

// patience bounds what is waited for, on a slow machine too.
const patience = 2 * time.Minute

// ends are a link's: the keeper's, which leads, and the process's.
func ends(t *testing.T) (keeper, process *Conn) {
	t.Helper()
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if keeper, err = New(a); err != nil {
		t.Fatal(err)
	}
	if process, err = New(b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keeper.Close(); process.Close() })
	return keeper, process
}

// TestPackets: packets of all sizes arrive, and a stream with each, whichever end
// sends; a direction ends by itself.
func TestPackets(t *testing.T) {
	keeper, process := ends(t)
	if err := process.Send([]byte("hi"), nil); err != nil {
		t.Fatal(err)
	}
	if b, e, err := keeper.Receive(); string(b) != "hi" || e != nil || err != nil { // and which process it is
		t.Fatalf("%q, %v, %v", b, e, err)
	}
	for what, way := range map[string][2]*Conn{"put": {keeper, process}, "taken": {process, keeper}} {
		for _, n := range []int{1, 4096, Max} {
			ours, theirs, err := Streams()
			if err != nil {
				t.Fatal(err)
			}
			sent := make(chan error, 1)
			go func() { sent <- way[0].Send(bytes.Repeat([]byte{byte(n)}, n), theirs); theirs.Close() }()
			b, e, err := way[1].Receive()
			if err != nil || len(b) != n || b[n-1] != byte(n) || e == nil {
				t.Fatalf("%s: %d bytes of %d, %v, %v", what, len(b), n, e, err)
			}
			if err := <-sent; err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			came, err := Stream(e)
			if err != nil {
				t.Fatal(err)
			}
			talk(t, ours, came)
		}
	}
	if err := keeper.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := process.Receive(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := process.Send([]byte("last"), nil); err != nil {
		t.Error(err)
	}
	if b, _, err := keeper.Receive(); string(b) != "last" || err != nil {
		t.Errorf("the other way: %q, %v", b, err)
	}
	for _, n := range []int{0, Max + 1} {
		if err := process.Send(make([]byte, n), nil); !errors.Is(err, ErrPacket) {
			t.Errorf("%d bytes are sent: %v", n, err)
		}
	}
}

// talk says something both ways, waits in vain, and ends.
func talk(t *testing.T, a, b net.Conn) {
	t.Helper()
	defer a.Close()
	defer b.Close()
	a.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); err == nil || !isTimeout(err) {
		t.Errorf("nothing came, and that is %v", err)
	}
	a.SetDeadline(time.Now().Add(patience))
	b.SetDeadline(time.Now().Add(patience))
	if _, err := a.Write([]byte("question")); err != nil {
		t.Error(err)
	}
	a.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := b.Write([]byte("answer")); err != nil {
		t.Error(err)
	}
	b.Close()
	if got, err := io.ReadAll(a); string(got) != "answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func isTimeout(err error) bool {
	var n interface{ Timeout() bool }
	return errors.As(err, &n) && n.Timeout()
}

// TestHostilePackets: what a process that was taken over may write ends the link.
// Above all it names no handle of the keeper's.
func TestHostilePackets(t *testing.T) {
	frame := func(kind byte, handles []uint64, n uint32, b string) []byte {
		p := append(binary.BigEndian.AppendUint32(nil, n), kind)
		for _, h := range handles {
			p = binary.BigEndian.AppendUint64(p, h)
		}
		return append(p, b...)
	}
	own, other, err := pipe() // which the keeper has open, and would take for a stream
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(own)
	defer windows.CloseHandle(other)
	var waitsR, waitsW windows.Handle
	if err := windows.CreatePipe(&waitsR, &waitsW, nil, 0); err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(waitsW) // the other end is taken
	event, err := windows.CreateEvent(nil, 0, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"no bytes":               frame(framePacket, nil, 0, ""),
		"too many bytes":         frame(framePacket, nil, Max+1, ""),
		"a handle of the keeper": frame(framePut, []uint64{uint64(own), uint64(other)}, 1, "x"),
		"a handle of nothing":    frame(frameTake, []uint64{0xfffffff0, 0xfffffff0}, 1, "x"),
		"a handle of no pipe":    frame(frameTake, []uint64{uint64(event), uint64(event)}, 1, "x"),
		"a pipe that waits":      frame(frameTake, []uint64{uint64(waitsR), uint64(waitsR)}, 1, "x"),
		"a second hello":         frame(frameHello, nil, 4, "\x00\x00\x00\x04"),
		"an unknown frame":       frame(9, nil, 1, "x"),
		"the end in a frame":     frame(framePacket, nil, 9, "x"),
	} {
		t.Run(name, func(t *testing.T) {
			keeper, process := ends(t)
			process.Send([]byte("hi"), nil)
			if b, _, err := keeper.Receive(); string(b) != "hi" || err != nil { // the control
				t.Fatalf("%q, %v", b, err)
			}
			if _, err := process.w.Write(bad); err != nil {
				t.Fatal(err)
			}
			process.CloseWrite()
			if b, e, err := keeper.Receive(); err == nil || err == io.EOF {
				t.Errorf("%q, %v, %v", b, e, err)
			}
			if err := keeper.Send([]byte("x"), nil); err == nil {
				t.Error("the link goes on")
			}
		})
	}
	t.Run("handles without a hello", func(t *testing.T) {
		a, b, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		keeper, err := New(a)
		if err != nil {
			t.Fatal(err)
		}
		defer keeper.Close()
		_, w, err := b.Files()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := w.Write(frame(frameTake, []uint64{uint64(own), uint64(other)}, 1, "x")); err != nil {
			t.Fatal(err)
		}
		if b, e, err := keeper.Receive(); !errors.Is(err, ErrPacket) {
			t.Errorf("%q, %v, %v", b, e, err)
		}
	})
}

// TestGivenUp: a process that is gone ends a link that waits, and a link that is
// closed ends its own reader.
func TestGivenUp(t *testing.T) {
	keeper, process := ends(t)
	got := make(chan error, 2)
	for range 2 {
		go func() { _, _, err := keeper.Receive(); got <- err }()
		process.Close()
		if err := wait(t, got); err != io.EOF {
			t.Errorf("the other end is gone: %v", err)
		}
		keeper, process = ends(t)
	}
	go func() { _, _, err := keeper.Receive(); got <- err }()
	keeper.Close()
	if err := wait(t, got); err == nil {
		t.Error("a link that was closed brought a packet")
	}
	if err := keeper.Send([]byte("x"), new(inherit.End)); err == nil {
		t.Error("a stream went over a link that was closed")
	}
}

func wait(t *testing.T, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		t.Fatal("nothing ended it")
		return nil
	}
}
