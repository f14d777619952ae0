//go:build bench

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/guest/wire"
)

// startOurs starts the process of one share of ours.
func (m *benchMachine) startOurs(tag string, s planned) *control.Client {
	var st unix.Stat_t
	if err := unix.Stat(s.dir, &st); err != nil {
		m.b.Fatal(err)
	}
	spec := guest.ShareSpec{Tag: tag, Path: s.dir, Dev: st.Dev, Ino: st.Ino, Owner: taskUser, Rules: s.rules}
	if !s.rules.Plain {
		spec.Store = s.dir + "-store"
		m.b.Cleanup(func() { os.RemoveAll(spec.Store) })
	}
	f, err := startShare(m.b.Context(), spec)
	if err != nil {
		m.b.Fatal(err)
	}
	c := control.NewClient(f, nil)
	m.b.Cleanup(func() { c.Close(context.Background()) })
	if s.rules.Mode.Writes() && spec.Store != "" {
		if err := c.Session(m.b.Context(), "bench"); err != nil {
			m.b.Fatal(err)
		}
	}
	return c
}

// serveOurs starts the process that serves a share's device.
func (m *benchMachine) serveOurs(tag string, s planned) net.Conn {
	c := m.startOurs(tag, s)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.b.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "share"), os.NewFile(uintptr(fds[1]), "share")
	defer theirs.Close()
	defer ours.Close()
	if err := c.Carry(control.VirtioFS, theirs); err != nil {
		m.b.Fatal(err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		m.b.Fatal(err)
	}
	return conn
}

// serveTheirs starts virtiofsd and connects to it. It stays with its defaults,
// of which cache=auto is what our server does as well.
func (m *benchMachine) serveTheirs(dir, socket string) net.Conn {
	cmd := exec.Command(virtiofsd, "--socket-path="+socket, "-o", "source="+dir+",cache=auto")
	m.b.Cleanup(m.b.start(cmd, nil))
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond) // it does not say when it is ready
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			return c
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			m.b.Fatalf("virtiofsd: %v (it needs root)", err)
		}
	}
}

// serveLive serves a share to whoever in the guest dials for it, as a keeper does.
func (m *benchMachine) serveLive(s planned) {
	c := m.startOurs("live", s)
	ln, err := m.vsock.Listen(wire.PortShare)
	if err != nil {
		m.b.Fatal(err)
	}
	go func() {
		for {
			stream, err := ln.Accept()
			if err != nil {
				return
			}
			if err := handLive(c, stream); err != nil {
				m.b.Errorf("the share over a stream: %v", err)
			}
		}
	}()
}

// handLive reads for what a stream is, and carries it to the share's process.
func handLive(c *control.Client, stream net.Conn) error {
	head := new(wire.Attach)
	if err := (protodelim.UnmarshalOptions{MaxSize: 1 << 10}).UnmarshalFrom(bytewise{stream}, head); err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return err
	}
	half := func(dst, src net.Conn) {
		io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 32<<10)) // a keeper's buffer
		dst.(interface{ CloseWrite() error }).CloseWrite()
	}
	go half(conn, stream)
	go half(stream, conn)
	for late := time.Now().Add(patience); c.Carrying(); time.Sleep(time.Millisecond) { // with the one before
		if time.Now().After(late) {
			return errors.New("the stream before does not end")
		}
	}
	return c.Carry(control.Stream, theirs)
}

// bytewise reads nothing ahead: what follows is the share process's.
type bytewise struct{ io.Reader }

func (r bytewise) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}
