package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/packet"
)

func pair(t *testing.T) (keeper, edge *Conn) {
	t.Helper()
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if keeper, err = New(a); err != nil {
		t.Fatal(err)
	}
	if edge, err = New(b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keeper.Close(); edge.Close() })
	return keeper, edge
}

func sockets(t *testing.T, kind int) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

func TestStreamCrosses(t *testing.T) {
	keeper, edge := pair(t)
	ours, theirs := sockets(t, unix.SOCK_STREAM)
	if err := keeper.Send(&Message{Kind: Stream}, theirs); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	m, c, err := edge.Receive()
	if err != nil || m.Kind != Stream {
		t.Fatal(m, err)
	}
	defer c.Close()
	if _, err := ours.WriteString("hi"); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hi" {
		t.Fatalf("%q %v", b, err)
	}
	fd := func() (n int) {
		rc, _ := c.(*net.UnixConn).SyscallConn()
		rc.Control(func(f uintptr) { n, _ = unix.FcntlInt(f, unix.F_GETFD, 0) })
		return n
	}()
	if fd&unix.FD_CLOEXEC == 0 {
		t.Error("a received descriptor would be inherited")
	}
}

func TestTrustCrosses(t *testing.T) {
	keeper, edge := pair(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 10<<10) // five pieces
	sent := make(chan error, 1)
	go func() { sent <- edge.SendTrust(want) }()
	var tr Trust
	for done := false; !done; {
		m, _, err := keeper.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if done, err = tr.Add(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil || !bytes.Equal(tr.PEM(), want) {
		t.Fatal(err, len(tr.PEM()))
	}
	if err := edge.SendTrust(make([]byte, MaxTrust+1)); !errors.Is(err, ErrMessage) {
		t.Fatalf("too much trust: %v", err)
	}
}

// What is no message of ours is refused, and no descriptor of it stays open.
func TestReceiveRefuses(t *testing.T) {
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	edge, err := New(b)
	if err != nil {
		t.Fatal(err)
	}
	defer edge.Close()
	open := func() int {
		es, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	packets, other := sockets(t, unix.SOCK_SEQPACKET)
	defer packets.Close()
	defer other.Close()
	before := open()
	raw := func(b []byte, fds ...int) {
		t.Helper()
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		if err := unix.Sendmsg(int(a.Fd()), b, oob, nil, 0); err != nil {
			t.Fatal(err)
		}
		if m, c, err := edge.Receive(); !errors.Is(err, ErrMessage) || c != nil {
			t.Errorf("%.40q with %d descriptors: %v %v", b, len(fds), m, err)
		}
	}
	raw([]byte("no"))
	raw([]byte(`{"kind":"stream"}`))
	raw([]byte(`{"kind":"refused","line":"x"}`), int(file.Fd()))
	raw([]byte(`{"kind":"stream"}`), int(file.Fd()))
	raw([]byte(`{"kind":"stream"}`), int(packets.Fd()))
	raw([]byte(`{"kind":"stream"}`), int(file.Fd()), int(file.Fd()))
	raw([]byte(`{"kind":"stream"}`), 0, 0, 0, 0, 0, 0, 0, 0)
	raw(bytes.Repeat([]byte(" "), MaxMessage+2))
	if after := open(); after != before {
		t.Errorf("%d descriptors were open, and %d are", before, after)
	}
	// The control: the link still works.
	keeper, err := New(a)
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	if err := keeper.Send(&Message{Kind: Stream}, packets); err != nil {
		t.Fatal(err)
	}
	if _, _, err := edge.Receive(); !errors.Is(err, ErrMessage) {
		t.Fatal(err)
	}
	inner, outer := sockets(t, unix.SOCK_STREAM)
	defer inner.Close()
	if err := keeper.Send(&Message{Kind: Stream}, outer); err != nil {
		t.Fatal(err)
	}
	outer.Close()
	_, c, err := edge.Receive()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// An end that does not read holds nobody up for ever, and an end that is gone
// is noticed.
func TestEndsAreNoticed(t *testing.T) {
	keeper, edge := pair(t)
	begin := time.Now()
	var err error
	for err == nil {
		err = edge.Send(&Message{Kind: Refused, Line: "no"}, nil)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) < packet.SendTimeout {
		t.Fatalf("after %v: %v", time.Since(begin), err)
	}
	edge.Close()
	for err = nil; err == nil; {
		_, _, err = keeper.Receive()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}
