package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// streamPair returns the two ends of a stream as it is in a share process.
func streamPair(t testing.TB) (server, client net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "stream")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	t.Cleanup(func() { ends[0].Close(); ends[1].Close() })
	return ends[0], ends[1]
}

// startStream serves a folder over a stream. done gets what ServeStream returned.
func startStream(t testing.TB, ctx context.Context, o Options) (s *Server, root string, client net.Conn, done chan error) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	s = New(r, plain(t, o))
	t.Cleanup(func() { s.Close() })
	server, client := streamPair(t)
	done = make(chan error, 1)
	go func() { done <- s.ServeStream(ctx, server) }()
	return s, root, client, done
}

func readReply(t testing.TB, c net.Conn) (unique uint64, e errno, body []byte) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(coherent))
	head := make([]byte, outHeaderSize)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal("no reply: ", err)
	}
	body = make([]byte, le.Uint32(head)-outHeaderSize)
	if _, err := io.ReadFull(c, body); err != nil {
		t.Fatal("half a reply: ", err)
	}
	return le.Uint64(head[8:]), errno(-int32(le.Uint32(head[4:]))), body
}

func await(t testing.TB, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(coherent):
		t.Fatal("the stream's server did not end")
		return nil
	}
}

// Messages that come in any pieces and many at once are answered, each once;
// those that have no reply get none.
func TestStream(t *testing.T) {
	_, root, c, done := startStream(t, t.Context(), Options{})
	want(t, "write", os.WriteFile(filepath.Join(root, "f"), []byte("contents"), 0o644), nil)
	g := &guest{t: t}
	init := g.message(opInit, 0, uint32(7), uint32(31), uint32(1<<20), ^uint32(0))
	for i := range init { // byte by byte
		if _, err := c.Write(init[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if u, e, _ := readReply(t, c); u != 1 || e != ok {
		t.Fatalf("INIT: %d, %v", u, e)
	}
	const many = 500
	var all []byte
	for range many {
		all = append(all, g.message(opLookup, rootID, "f")...)
		all = append(all, g.message(opForget, 2, uint64(1))...)
		all = append(all, g.message(opInterrupt, 0, uint64(3))...)
	}
	go c.Write(all) // more than the socket holds
	seen := map[uint64]bool{}
	for range many {
		u, e, _ := readReply(t, c)
		if seen[u] || e != ok {
			t.Fatalf("reply to %d, again %v: %v", u, seen[u], e)
		}
		seen[u] = true
	}
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more reply: %d, %v", n, err)
	}
	c.Close()
	if err := await(t, done); err != nil {
		t.Errorf("a stream that ended in order: %v", err)
	}
}

// What is no message ends the stream, before anything is allocated for it.
func TestStreamLengths(t *testing.T) {
	for _, n := range []uint32{0, 1, inHeaderSize - 1, MaxMessage + 1, 1 << 31, ^uint32(0)} {
		_, _, c, done := startStream(t, t.Context(), Options{})
		if _, err := c.Write(le.AppendUint32(nil, n)); err != nil {
			t.Fatal(err)
		}
		if err := await(t, done); !errors.Is(err, ErrStream) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	_, _, c, done := startStream(t, t.Context(), Options{})
	c.Write(le.AppendUint32(nil, inHeaderSize))
	c.Close()
	if err := await(t, done); err != io.ErrUnexpectedEOF {
		t.Errorf("half a message: %v", err)
	}
}

// When ServeStream has returned nothing reaches the folder, and every handle of
// the stream is closed; the next stream starts with INIT.
func TestStreamEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, root, c, done := startStream(t, ctx, Options{})
	g := &guest{t: t}
	c.Write(g.message(opInit, 0, uint32(7), uint32(31), uint32(1<<20), ^uint32(0)))
	readReply(t, c)
	c.Write(g.message(opCreate, rootID, uint32(oRdwr), uint32(0o644), uint64(0), "made"))
	if _, e, _ := readReply(t, c); e != ok {
		t.Fatalf("control: CREATE: %v", e)
	}
	cancel()
	if err := await(t, done); err != nil {
		t.Error(err)
	}
	c.Write(g.message(opMkdir, rootID, uint64(0o755), "later"))
	if n := len(s.handles.all()); n != 0 {
		t.Errorf("%d handles are open", n)
	}
	if _, err := os.Stat(filepath.Join(root, "later")); err == nil {
		t.Error("a message after the end made a folder")
	}
	server, c2 := streamPair(t)
	go s.ServeStream(t.Context(), server)
	c2.Write(g.message(opMkdir, rootID, uint64(0o755), "later"))
	if _, e, _ := readReply(t, c2); e == ok {
		t.Error("a second stream goes on with the first's session")
	}
	s.Close()
	c2.Write(g.message(opInit, 0, uint32(7), uint32(31), uint32(1<<20), ^uint32(0)))
	if _, e, _ := readReply(t, c2); e != eIO {
		t.Errorf("a closed server: %v", e)
	}
	c2.SetReadDeadline(time.Now().Add(coherent))
	if _, err := c2.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the stream of a closed server: %v", err)
	}
}

// relayStream is what an agent does: messages between /dev/fuse and a stream.
func relayStream(dev int, c net.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		buf := make([]byte, MaxMessage)
		for {
			n, err := unix.Read(dev, buf)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
				continue
			case err != nil: // ENODEV: unmounted
				c.(*net.UnixConn).CloseWrite()
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	buf := make([]byte, MaxMessage)
	for {
		if _, err := io.ReadFull(c, buf[:4]); err != nil {
			break
		}
		n := le.Uint32(buf)
		if _, err := io.ReadFull(c, buf[4:n]); err != nil {
			break
		}
		_, _ = unix.Write(dev, buf[:n])
	}
	both.Wait()
}

// mountFuse mounts a fresh /dev/fuse and returns it.
func mountFuse(t *testing.T) (mnt string, dev int) {
	t.Helper()
	mnt = t.TempDir()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open /dev/fuse: %v (the tests of the share server run as root on a machine with FUSE)", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", dev, MaxWrite)
	if err := unix.Mount("carrel-test", mnt, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		t.Fatalf("mount: %v", err)
	}
	return mnt, dev
}

// This machine's own kernel through both carriers of raw messages: a stream
// with a relay, and the device itself.
func TestStreamMount(t *testing.T) {
	carriers := map[string]func(*testing.T, *Server, int) (wait func()){
		"relay": func(t *testing.T, s *Server, dev int) func() {
			server, client := streamPair(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := s.ServeStream(t.Context(), server); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() { relayStream(dev, client); unix.Close(dev) })
			return wg.Wait
		},
		"device": func(t *testing.T, s *Server, dev int) func() {
			if err := unix.SetNonblock(dev, true); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := s.ServeDevice(t.Context(), os.NewFile(uintptr(dev), "fuse")); err != nil {
					t.Error(err)
				}
			})
			return wg.Wait
		},
	}
	for name, start := range carriers {
		t.Run(name, func(t *testing.T) {
			root := newFolder(t)
			r, err := OpenRoot(root)
			want(t, "open", err, nil)
			s := New(r, plain(t, Options{}))
			defer s.Close()
			mnt, dev := mountFuse(t)
			wait := start(t, s, dev)
			noPoll(t, mnt, root)
			big := make([]byte, 3<<20+17)
			for i := range big {
				big[i] = byte(i * 7)
			}
			want(t, "mkdir", os.Mkdir(filepath.Join(mnt, "d"), 0o755), nil)
			want(t, "write", os.WriteFile(filepath.Join(mnt, "d/big"), big, 0o644), nil)
			var files sync.WaitGroup
			for i := range 8 {
				files.Go(func() {
					for j := range 25 {
						name := filepath.Join(mnt, "d", fmt.Sprint(i, "-", j))
						want(t, "write", os.WriteFile(name, []byte(name), 0o644), nil)
					}
				})
			}
			files.Wait()
			for _, dir := range []string{mnt, root} {
				b, err := os.ReadFile(filepath.Join(dir, "d/big"))
				if err != nil || string(b) != string(big) {
					t.Errorf("%s: %d bytes, %v", dir, len(b), err)
				}
				if names, err := os.ReadDir(filepath.Join(dir, "d")); err != nil || len(names) != 201 {
					t.Errorf("%s: %d names, %v", dir, len(names), err)
				}
			}
			want(t, "unmount", unix.Unmount(mnt, 0), nil)
			wait()
		})
	}
}

// When the server of a device goes, its files do not hang: they fail.
func TestDeviceEnds(t *testing.T) {
	root := newFolder(t)
	r, err := OpenRoot(root)
	want(t, "open", err, nil)
	want(t, "write", os.WriteFile(filepath.Join(root, "f"), []byte("x"), 0o644), nil)
	s := New(r, plain(t, Options{}))
	defer s.Close()
	mnt, dev := mountFuse(t)
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	want(t, "nonblock", unix.SetNonblock(dev, true), nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.ServeDevice(ctx, os.NewFile(uintptr(dev), "fuse")) }()
	noPoll(t, mnt, root)
	f, err := os.Open(filepath.Join(mnt, "f"))
	want(t, "control", err, nil)
	defer f.Close()
	cancel()
	want(t, "end", await(t, done), nil)
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("an open file: %v", err)
	}
	if _, err := os.ReadFile(filepath.Join(mnt, "f")); err == nil {
		t.Error("the file can still be read")
	}
}

// FuzzStream: whatever comes, the server ends with the stream and has touched
// nothing but its folder.
func FuzzStream(f *testing.F) {
	g := &guest{t: f}
	init := g.message(opInit, 0, uint32(7), uint32(31), uint32(1<<20), ^uint32(0))
	f.Add(init)
	f.Add(append(append([]byte(nil), init...), g.message(opMkdir, rootID, uint64(0o755), "d")...))
	f.Add(append(append([]byte(nil), init...), g.message(opLookup, rootID, "../outside")...))
	f.Add([]byte{40, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, c, done := startStream(t, t.Context(), Options{})
		go io.Copy(io.Discard, c)
		c.SetWriteDeadline(time.Now().Add(5 * time.Second))
		c.Write(b)
		c.(*net.UnixConn).CloseWrite()
		await(t, done)
	})
}
