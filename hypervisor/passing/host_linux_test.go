package passing

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

// newHost returns a host and the guest's end of its socket, as a hostile guest
// would use it.
func newHost(t *testing.T) (*Host, int) {
	t.Helper()
	h, g, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Close()
		g.Close()
	})
	fd := int(g.Calls.Fd())
	// No test waits for ever for an answer.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
		t.Fatal(err)
	}
	return h, fd
}

func request(port, id uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, port), id)
}

// receive reads one message as the guest; fd is that of its stream, or -1. With a
// timeout the kernel does not go on by itself after a signal, of which Go's scheduler
// sends one to whom a call takes long (signal(7)).
func receive(t *testing.T, calls int) (message []byte, fd int) {
	t.Helper()
	b, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(calls, b, oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, oobn, _, _, err = unix.Recvmsg(calls, b, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		t.Fatal("no answer: ", err)
	}
	if oobn == 0 {
		return b[:n], -1
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], fds[0]
}

// dial asks for a stream and returns it, or -1 when it is refused.
func dial(t *testing.T, calls int, port, id uint32) int {
	t.Helper()
	if _, err := unix.Write(calls, request(port, id)); err != nil {
		t.Fatal(err)
	}
	m, fd := receive(t, calls)
	if string(m) != string(request(port, id)) {
		t.Fatalf("the answer to dial %d of port %d: %x", id, port, m)
	}
	return fd
}

func TestGuestDials(t *testing.T) {
	h, calls := newHost(t)
	if fd := dial(t, calls, 65, 1); fd != -1 {
		t.Error("a port on which nobody listens took a stream")
	}
	ln, err := h.Listen(65)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Listen(65); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	fd := dial(t, calls, 65, 2)
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
	if fd := dial(t, calls, 66, 3); fd != -1 {
		t.Error("another port took a stream")
	}
	ln.Close()
	if fd := dial(t, calls, 65, 4); fd != -1 {
		t.Error("a closed listener took a stream")
	}
	if ln, err = h.Listen(65); err != nil {
		t.Errorf("listen again: %v", err)
	}
	h.Close()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after the end: %v", err)
	}
	if _, err := h.Listen(67); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("listen after the end: %v", err)
	}
}

// TestBacklog: a guest that dials faster than anybody accepts is refused.
func TestBacklog(t *testing.T) {
	h, calls := newHost(t)
	ln, err := h.Listen(65)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(backlog) {
		fd := dial(t, calls, 65, i)
		if fd == -1 {
			t.Fatalf("refused with %d waiting", i)
		}
		defer unix.Close(fd)
	}
	if fd := dial(t, calls, 65, backlog); fd != -1 {
		t.Errorf("%d streams wait for Accept", backlog+1)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	fd := dial(t, calls, 65, backlog+1)
	if fd == -1 {
		t.Error("refused although there is room again")
	}
	unix.Close(fd)
}

// TestHostileGuest: files that a guest passes are never taken, and what is no
// request is passed over.
func TestHostileGuest(t *testing.T) {
	h, calls := newHost(t)
	ln, err := h.Listen(65)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	before := openFiles(t)
	for _, m := range [][]byte{{0}, {0, 0, 0, 65}, request(65, 1)[:7], append(request(65, 1), 0), make([]byte, 4096)} {
		if err := unix.Sendmsg(calls, m, nil, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if err := unix.Sendmsg(calls, request(99, 7), unix.UnixRights(int(w.Fd()), int(w.Fd()), int(w.Fd())), nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, fd := receive(t, calls); fd != -1 {
			t.Fatal("a port on which nobody listens took a stream")
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d before", after, before)
	}
	// Nobody holds the passed end any more.
	w.Close()
	r.SetReadDeadline(time.Now().Add(patience))
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a file that the guest passed is still open somewhere: %d, %v", n, err)
	}
	fd := dial(t, calls, 65, 8)
	if fd == -1 {
		t.Fatal("control: a good request was refused")
	}
	unix.Close(fd)
}

// TestDeafGuest: a guest that reads nothing holds up nobody on the host.
func TestDeafGuest(t *testing.T) {
	h, calls := newHost(t)
	if _, err := h.Listen(65); err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		if err := unix.Sendmsg(calls, request(65, 1), nil, nil, unix.MSG_DONTWAIT); err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
	}
	var err error
	for range 10_000 {
		var c net.Conn
		if c, err = h.Dial(t.Context(), 64); err != nil {
			break
		}
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dials to a guest that reads nothing: %v", err)
	}
	h.Close() // or go test ends it
}

// FuzzRequest: no message of a guest ends the host's service.
func FuzzRequest(f *testing.F) {
	f.Add(request(65, 1))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, message []byte) {
		h, g, err := New()
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		defer h.Close()
		fd := int(g.Calls.Fd())
		if len(message) == 0 || len(message) > 4096 {
			return // an empty one is the end
		}
		if err := unix.Sendmsg(fd, message, nil, nil, 0); err != nil {
			t.Fatal(err)
		}
		if len(message) == 8 {
			receive(t, fd)
		}
		if got := dial(t, fd, 70, 1); got != -1 {
			t.Fatal("a port on which nobody listens took a stream")
		}
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
