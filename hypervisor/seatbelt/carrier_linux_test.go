package seatbelt

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// newHost returns a carrier and the guest's end of it, as a hostile guest would
// use it.
func newHost(t testing.TB) (*carrier, int) {
	t.Helper()
	h, g, err := newCarrier()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.close()
		g.close()
	})
	fd := int(g.calls.Fd())
	// No test waits for ever for an answer.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
		t.Fatal(err)
	}
	return h, fd
}

func message(port, id uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, port), id)
}

// receive reads one message. With a timeout the kernel does not go on by itself
// after a signal, of which Go's scheduler sends many (signal(7)).
func receive(calls int, b, oob []byte) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(calls, b, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), oobn, err
		}
	}
}

// ask asks for a stream and returns it, or -1 when it is refused.
func ask(t testing.TB, calls int, port, id uint32) int {
	t.Helper()
	if _, err := unix.Write(calls, message(port, id)); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, messageLen), make([]byte, unix.CmsgSpace(4))
	n, oobn, err := receive(calls, b, oob)
	if err != nil || string(b[:n]) != string(message(port, id)) {
		t.Fatalf("the answer to dial %d of port %d: %x, %v", id, port, b, err)
	}
	if oobn == 0 {
		return -1
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	arrived(t, calls)
	return fds[0]
}

func arrived(t testing.TB, calls int) {
	t.Helper()
	if _, err := unix.Write(calls, message(0, 0)); err != nil {
		t.Fatal(err)
	}
}

// TestKeptUntilArrived: the host lets go of a guest's end of a stream when the
// guest says that it has it, and not for what a guest says that got none.
func TestKeptUntilArrived(t *testing.T) {
	h, calls := newHost(t)
	arrived(t, calls) // of nothing
	if fd := ask(t, calls, 65, 1); fd != -1 {
		t.Fatal("nobody listens")
	}
	c, err := h.dial(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, oob := make([]byte, messageLen), make([]byte, unix.CmsgSpace(4))
	_, oobn, err := receive(calls, b, oob)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[0])
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("before it arrived: %v", err)
	}
	arrived(t, calls)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(b); err != io.EOF {
		t.Errorf("after it arrived: %v", err)
	}
	var refused error
	for range maxSent + 1 { // of which it says nothing
		var c net.Conn
		if c, refused = h.dial(t.Context(), 7); refused != nil {
			break
		}
		defer c.Close()
		if n, _, err := receive(calls, b, nil); err != nil || n != messageLen {
			t.Fatal(n, err)
		}
	}
	if !errors.Is(refused, unix.ECONNREFUSED) {
		t.Errorf("the host keeps more than %d: %v", maxSent, refused)
	}
}

func TestGuestDials(t *testing.T) {
	h, calls := newHost(t)
	if fd := ask(t, calls, 65, 1); fd != -1 || h.listens(65) {
		t.Error("a port on which nobody listens took a stream")
	}
	ln, err := h.listen(65)
	if err != nil || !h.listens(65) {
		t.Fatal(err)
	}
	if _, err := h.listen(65); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	fd := ask(t, calls, 65, 2)
	if fd == -1 {
		t.Fatal("refused")
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := unix.Write(fd, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	for i := range uint32(backlog) {
		fd := ask(t, calls, 65, 3+i)
		if fd == -1 {
			t.Fatalf("refused with %d waiting", i)
		}
		defer unix.Close(fd)
	}
	if fd := ask(t, calls, 65, 1000); fd != -1 {
		t.Error("too many streams wait for Accept")
	}
	ln.Close()
	if fd := ask(t, calls, 65, 1001); fd != -1 {
		t.Error("a closed listener took a stream")
	}
	h.close()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after the end: %v", err)
	}
	if _, err := h.listen(67); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("listen after the end: %v", err)
	}
}

// TestHostileGuest: files that a guest passes are never taken, messages in
// pieces are put together, and those with id 0 are passed over.
func TestHostileGuest(t *testing.T) {
	h, calls := newHost(t)
	ln, err := h.listen(65)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := append(message(65, 0), message(65, 5)[:3]...)
	for _, b := range m {
		if err := unix.Sendmsg(calls, []byte{b}, unix.UnixRights(int(w.Fd()), int(w.Fd())), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	// The rest of the last one, and another.
	if _, err := unix.Write(calls, message(65, 5)[3:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, messageLen)
	if n, _, err := receive(calls, b, nil); err != nil || string(b[:n]) != string(message(65, 5)) {
		t.Errorf("%x, %v", b[:n], err)
	}
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(patience))
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a file that the guest passed is still open somewhere: %d, %v", n, err)
	}
	if fd := ask(t, calls, 65, 8); fd == -1 {
		t.Error("control: a good request was refused")
	} else {
		unix.Close(fd)
	}
}

// TestDeafGuest: a guest that reads nothing holds up nobody on the host.
func TestDeafGuest(t *testing.T) {
	h, calls := newHost(t)
	if _, err := h.listen(65); err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		if err := unix.Sendmsg(calls, message(65, 1), nil, nil, unix.MSG_DONTWAIT); err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
	}
	var err error
	for range 10_000 {
		var c net.Conn
		if c, err = h.dial(t.Context(), 64); err != nil {
			break
		}
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dials to a guest that reads nothing: %v", err)
	}
	h.close() // or go test ends it
}

// FuzzCarrier: no bytes of a guest end the host's service, and each request
// among them gets its answer.
func FuzzCarrier(f *testing.F) {
	f.Add(append(message(65, 1), message(70, 2)...))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, calls := newHost(t)
		if _, err := h.listen(70); err != nil {
			t.Fatal(err)
		}
		b = b[:min(len(b), 64*messageLen)]
		b = b[:len(b)-len(b)%messageLen]
		for ; len(b) > 0; b = b[messageLen:] {
			port, id := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
			if id == 0 {
				if _, err := unix.Write(calls, b[:messageLen]); err != nil {
					t.Fatal(err)
				}
				continue
			}
			fd := ask(t, calls, port, id)
			if (fd == -1) == (port == 70) {
				t.Fatalf("port %d: stream %d", port, fd)
			}
			if fd != -1 {
				unix.Close(fd)
			}
		}
		if fd := ask(t, calls, 71, 1); fd != -1 {
			t.Fatal("a port on which nobody listens took a stream")
		}
	})
}
