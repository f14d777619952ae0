//go:build carreltest

package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor/hcs/hcstest"
)

// fakeMount is a share as the kernel of a guest has it, with the few requests of
// FUSE that a fake guest's tasks need (include/uapi/linux/fuse.h).
type fakeMount struct {
	mu     sync.Mutex
	c      net.Conn
	unique uint64
}

// Operations of FUSE.
const (
	fuseLookup  = 1
	fuseUnlink  = 10
	fuseRename  = 12
	fuseOpen    = 14
	fuseRead    = 15
	fuseWrite   = 16
	fuseRelease = 18
	fuseInit    = 26
	fuseCreate  = 35
)

// fakeMounts are those of this guest, by their path.
var fakeMounts sync.Map

// fakeAttach mounts what the host says at the start.
func fakeAttach(id string, mounts []*wire.Mount) error {
	for _, m := range mounts {
		c, err := hcstest.Reach(id, wire.PortShare)
		if err != nil {
			return err
		}
		if err := wire.Write(c, &wire.Attach{Tag: m.Tag}); err != nil {
			return err
		}
		f := &fakeMount{c: c}
		if _, errno := f.ask(fuseInit, 0, uint32(7), uint32(38), uint32(1<<20), uint32(0)); errno != 0 {
			return fmt.Errorf("mount %s: error %d", m.Path, errno)
		}
		fakeMounts.Store(m.Path, f)
	}
	return nil
}

// ask sends one request and returns the answer's body, or its error number; the
// end of the stream is 5, EIO.
func (f *fakeMount) ask(op uint32, node uint64, parts ...any) ([]byte, int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unique++
	m := make([]byte, 40)
	le := binary.LittleEndian
	le.PutUint32(m[4:], op)
	le.PutUint64(m[8:], f.unique)
	le.PutUint64(m[16:], node)
	for _, p := range parts {
		switch p := p.(type) {
		case uint32:
			m = le.AppendUint32(m, p)
		case uint64:
			m = le.AppendUint64(m, p)
		case string:
			m = append(append(m, p...), 0)
		case []byte:
			m = append(m, p...)
		}
	}
	le.PutUint32(m, uint32(len(m)))
	if _, err := f.c.Write(m); err != nil {
		return nil, 5
	}
	var head [16]byte
	if _, err := io.ReadFull(f.c, head[:]); err != nil {
		return nil, 5
	}
	body := make([]byte, le.Uint32(head[:])-16)
	if _, err := io.ReadFull(f.c, body); err != nil {
		return nil, 5
	}
	return body, -int32(le.Uint32(head[4:]))
}

// walk looks up to the folder of a path below the share; the last part is the
// caller's.
func (f *fakeMount) walk(path string) (node uint64, name string, errno int32) {
	node = 1
	parts := strings.Split(path, "/")
	for _, p := range parts[:len(parts)-1] {
		b, e := f.ask(fuseLookup, node, p)
		if e != 0 {
			return 0, "", e
		}
		node = binary.LittleEndian.Uint64(b)
	}
	return node, parts[len(parts)-1], 0
}

func (f *fakeMount) read(path string) (string, int32) {
	node, name, e := f.walk(path)
	if e != 0 {
		return "", e
	}
	b, e := f.ask(fuseLookup, node, name)
	if e != 0 {
		return "", e
	}
	file := binary.LittleEndian.Uint64(b)
	if b, e = f.ask(fuseOpen, file, uint32(0), uint32(0)); e != 0 {
		return "", e
	}
	fh := binary.LittleEndian.Uint64(b)
	b, e = f.ask(fuseRead, file, fh, uint64(0), uint32(64<<10), uint32(0), uint64(0), uint32(0), uint32(0))
	f.ask(fuseRelease, file, fh, uint32(0), uint32(0), uint64(0))
	return string(b), e
}

func (f *fakeMount) write(path, text string) int32 {
	node, name, e := f.walk(path)
	if e != 0 {
		return e
	}
	b, e := f.ask(fuseCreate, node, uint32(2), uint32(0o644), uint32(0), uint32(0), name)
	if e != 0 {
		return e
	}
	file, fh := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[128:])
	_, e = f.ask(fuseWrite, file, fh, uint64(0), uint32(len(text)), uint32(0), uint64(0), uint32(0), uint32(0), []byte(text))
	f.ask(fuseRelease, file, fh, uint32(0), uint32(0), uint64(0))
	return e
}

// echoPort is where a fake guest's task "echo" has the host's loopback answer.
const echoPort = 21763

// fakeEcho is what a task "echo HOST TEXT" of a fake guest says: what the host's
// loopback, or whatever it reached, sent back.
func fakeEcho(id, host, text string) string {
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", echoPort))
	if err != nil {
		return err.Error()
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(io.LimitReader(c, 1<<10)) // to the end of one direction
			fmt.Fprintf(c, "%s to you, too", b)
			c.Close()
		}
	}()
	c, err := hcstest.Reach(id, wire.PortEgress)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := wire.Write(c, &wire.Open{Host: host, Port: echoPort}); err != nil {
		return err.Error()
	}
	io.WriteString(c, text)
	c.(interface{ CloseWrite() error }).CloseWrite()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	b, err := io.ReadAll(io.LimitReader(c, 1<<10))
	return fmt.Sprintf("%s (%v)", b, err)
}

// fakeFile is what a task "read PATH NAME", "write PATH NAME TEXT", "remove PATH
// NAME" or "rename PATH NAME NAME" of a fake guest says of a share at PATH: what
// it read, "ok", or the error's number.
func fakeFile(argv []string) string {
	if len(argv) < 3 {
		return ""
	}
	m, is := fakeMounts.Load(argv[1])
	if !is {
		return "no share at " + argv[1]
	}
	f := m.(*fakeMount)
	said, e := "ok", int32(0)
	switch {
	case argv[0] == "read":
		said, e = f.read(argv[2])
	case argv[0] == "write" && len(argv) == 4:
		e = f.write(argv[2], argv[3])
	case argv[0] == "remove":
		var node uint64
		var name string
		if node, name, e = f.walk(argv[2]); e == 0 {
			_, e = f.ask(fuseUnlink, node, name)
		}
	case argv[0] == "rename" && len(argv) == 4:
		from, name, err := f.walk(argv[2])
		to, other, err2 := f.walk(argv[3])
		if e = max(err, err2); e == 0 {
			_, e = f.ask(fuseRename, from, to, name, other)
		}
	}
	if e != 0 {
		return fmt.Sprintf("error %d", e)
	}
	return said
}
