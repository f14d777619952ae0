//go:build carreltest

package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
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

	// layer is what the guest has written where the share is in review, and what
	// it has removed, which is nil.
	laying sync.Mutex
	layer  map[string]*string
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

// fakeAttach mounts what the host says, at the start or later.
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
		if m.Overlay {
			f.layer = map[string]*string{}
		}
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

// laid is what the layer has of a file.
func (f *fakeMount) laid(path string) (text *string, has bool) {
	f.laying.Lock()
	defer f.laying.Unlock()
	text, has = f.layer[path]
	return text, has
}

// lay changes the layer, and says whether there is one. What the host has is
// read before, as overlayfs does.
func (f *fakeMount) lay(path string, text *string) bool {
	if f.layer == nil {
		return false
	}
	f.read(path)
	f.laying.Lock()
	defer f.laying.Unlock()
	f.layer[path] = text
	return true
}

// fakeReview says what the layer of a share has, as the agent does. Its files lie
// in the folder itself.
func fakeReview(c net.Conn, r *wire.Reader, path string) {
	m, is := fakeMounts.Load(path)
	if !is {
		return
	}
	f := m.(*fakeMount)
	say := func(m *wire.Reviewed) bool { return wire.Write(c, m) == nil }
	done := func() bool { return say(&wire.Reviewed{Kind: &wire.Reviewed_Done{Done: &wire.Done{}}}) }
	f.laying.Lock()
	layer := maps.Clone(f.layer)
	f.laying.Unlock()
	names := slices.Sorted(maps.Keys(layer))
	for _, name := range names {
		ch := &wire.Changed{Name: name, Type: wire.ChangedType_CHANGED_TYPE_REMOVED, Stamp: []byte("gone")}
		if text := layer[name]; text != nil {
			sum := sha256.Sum256([]byte(*text))
			ch = &wire.Changed{Name: name, Type: wire.ChangedType_CHANGED_TYPE_REGULAR, Mode: 0o666, Size: int64(len(*text)), Stamp: sum[:]}
		}
		if !say(&wire.Reviewed{Kind: &wire.Reviewed_Change{Change: ch}}) {
			return
		}
	}
	for ok := done(); ok; ok = done() {
		in := new(wire.Reviewing)
		if r.Read(in) != nil {
			return
		}
		if w := in.GetWant(); w != nil && int(w.Index) < len(names) {
			if text := layer[names[w.Index]]; text != nil && *text != "" && !say(&wire.Reviewed{Kind: &wire.Reviewed_Data{Data: []byte(*text)}}) {
				return
			}
		}
		if d := in.GetDrop(); d != nil {
			f.laying.Lock()
			for _, name := range d.Names {
				delete(f.layer, name)
			}
			if len(d.Names) == 0 {
				clear(f.layer)
			}
			f.laying.Unlock()
		}
	}
}

func (f *fakeMount) read(path string) (string, int32) {
	if text, has := f.laid(path); has {
		if text == nil {
			return "", 2
		}
		return *text, 0
	}
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
	if f.lay(path, &text) {
		return 0
	}
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

// fakeRefused gets a word when the host says that something was not let out.
var fakeRefused = make(chan struct{}, 1)

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
	if len(b) == 0 { // the task is told why before the guest is, if it is still there
		select {
		case <-fakeRefused:
		case <-time.After(time.Minute):
		}
	}
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
	case argv[0] == "remove" && f.lay(argv[2], nil):
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
