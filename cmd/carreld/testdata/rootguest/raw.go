//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The host's port for shares, and FUSE's numbers (include/uapi/linux/fuse.h).
const (
	sharePort = 66

	opLookup, opGetattr, opSetattr, opSymlink, opMknod, opMkdir = 1, 3, 4, 6, 8, 9
	opUnlink, opRename, opLink, opOpen, opRead, opWrite         = 10, 12, 13, 14, 15, 16
	opRelease, opInit, opOpendir, opCreate, opReaddirplus       = 18, 26, 27, 35, 44
	opRename2, opForget, opSetxattr, opCopyFileRange            = 45, 2, 21, 47
)

var le = binary.LittleEndian

func dial() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: sharePort}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// attach is wire.Attach, with its length before it.
func attach(tag string) []byte {
	m := append([]byte{0x0a, byte(len(tag))}, tag...)
	return append([]byte{byte(len(m))}, m...)
}

// speaker says one message after the other.
type speaker struct {
	f      *os.File
	unique uint64
	mu     sync.Mutex
}

var errCut = errors.New("the host ended it")

func speak(tag string) (*speaker, error) {
	f, err := dial()
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(attach(tag)); err != nil {
		return nil, errCut
	}
	s := &speaker{f: f}
	_, e, err := s.call(opInit, 0, u32(7), u32(38), u32(1<<20), u32(math.MaxUint32))
	if err == nil && e != 0 {
		err = e
	}
	return s, err
}

func u32(n uint32) []byte { return le.AppendUint32(nil, n) }
func u64(n uint64) []byte { return le.AppendUint64(nil, n) }
func str(s string) []byte { return append([]byte(s), 0) }

func (s *speaker) call(op uint32, node uint64, parts ...[]byte) (body []byte, e unix.Errno, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unique++
	m := make([]byte, 40)
	for _, p := range parts {
		m = append(m, p...)
	}
	le.PutUint32(m, uint32(len(m)))
	le.PutUint32(m[4:], op)
	le.PutUint64(m[8:], s.unique)
	le.PutUint64(m[16:], node)
	if _, err := s.f.Write(m); err != nil {
		return nil, 0, errCut
	}
	if op == opForget {
		return nil, 0, nil
	}
	var head [16]byte
	if _, err := io.ReadFull(s.f, head[:]); err != nil {
		return nil, 0, errCut
	}
	body = make([]byte, le.Uint32(head[:])-16)
	if _, err := io.ReadFull(s.f, body); err != nil {
		return nil, 0, errCut
	}
	return body, unix.Errno(-int32(le.Uint32(head[4:]))), nil
}

func raw(tag, what string, length time.Duration) error {
	s, err := speak(tag)
	if err != nil {
		return err
	}
	switch what {
	case "race":
		return s.race(length)
	case "wrong":
		return nil
	}
	return s.attack(what == "write")
}

// attack says what no kernel would. What it says of it is for whoever looks into
// a failure; a control is the file that it makes where that is allowed.
func (s *speaker) attack(writes bool) error {
	tries := 0
	try := func(what string, op uint32, node uint64, parts ...[]byte) []byte {
		tries++
		b, e, err := s.call(op, node, parts...)
		if err != nil {
			fmt.Println(what, "ended the stream")
			os.Exit(1)
		}
		if e == 0 {
			fmt.Println("DID", what)
		}
		return b
	}
	hostile := []string{"..", ".", "", "/", "../outside/canary", "../../../../../etc/passwd", "/etc/passwd", "dir/../../outside/canary", strings.Repeat("n", 256), "a\x00b"}
	const root, create = 1, 0o644
	made := func(node uint64, name string) []byte {
		return try("create "+name, opCreate, node, u32(unix.O_RDWR), u32(create), u64(0), str(name))
	}
	for _, n := range hostile {
		try("lookup "+n, opLookup, root, str(n))
		made(root, n)
		try("mkdir "+n, opMkdir, root, u64(0o755), str(n))
		try("mknod "+n, opMknod, root, u32(unix.S_IFREG|0o644), u32(0), u64(0), str(n))
		try("unlink "+n, opUnlink, root, str(n))
		try("symlink "+n, opSymlink, root, str(n), str("x"))
		try("rename from "+n, opRename, root, u64(root), str(n), str("stolen"))
		try("rename to "+n, opRename, root, u64(root), str("file"), str(n))
		try("link to "+n, opLink, root, u64(2), str(n))
	}
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFDIR} {
		try("mknod", opMknod, root, u32(kind|0o666), u32(0x103), u64(0), str("node"))
	}
	// Names of the lists, asked for directly: no kernel's cache is between.
	for _, n := range append(append([]string(nil), listed...), aliases...) {
		top, _, below := strings.Cut(n, "/")
		folder := below && (strings.Contains(strings.ToLower(top), "git") || strings.Contains(top, "g\u200c") || top == "sub")
		if !writes || top == "sub" {
			continue
		}
		made(root, top)
		try("symlink "+top, opSymlink, root, str(top), str("x"))
		try("rename to "+top, opRename, root, u64(root), str("file"), str(top))
		try("exchange "+top, opRename2, root, u64(root), u64(unix.RENAME_EXCHANGE), str("file"), str(top))
		if !folder { // of which some may be, without what is listed below them
			try("mkdir "+top, opMkdir, root, u64(0o755), str(top))
		}
	}
	for _, n := range []string{".env", ".ENV", ".env\u200b", ".env::$DATA"} {
		try("lookup "+n, opLookup, root, str(n))
	}
	// Nodes and handles that were never given, and another's.
	for _, node := range []uint64{0, 2, 3, 99, 1 << 20, 1 << 63, math.MaxUint64} {
		try("getattr", opGetattr, node+1000, u64(0), u64(0))
		for _, fh := range []uint64{0, 1, 2, 77, math.MaxUint64} {
			try("read", opRead, node, u64(fh), u64(0), u32(4096), make([]byte, 20))
			try("write", opWrite, node, u64(fh), u64(0), u32(4), make([]byte, 20), []byte("EVIL"))
			try("release", opRelease, node, u64(fh), make([]byte, 16))
			try("readdirplus", opReaddirplus, node, u64(fh), u64(0), u32(4096), make([]byte, 20))
		}
		s.call(opForget, node, u64(math.MaxUint64))
	}
	try("setxattr", opSetxattr, root, u32(4), u32(0), str("user.x"), []byte("evil"))
	try("copy_file_range", opCopyFileRange, root, make([]byte, 56))
	try("operation 4096", 4096, root, make([]byte, 64))
	// The file that is there, by its own node: lied about in every number.
	b, e, err := s.call(opLookup, root, str("file"))
	if err != nil || e != 0 {
		return fmt.Errorf("control: file: %v %v", e, err)
	}
	file := le.Uint64(b)
	if !writes {
		try("open to write", opOpen, file, u32(unix.O_WRONLY), u32(0))
		try("open to cut", opOpen, file, u32(unix.O_TRUNC), u32(0))
		try("setattr", opSetattr, file, append(u32(1<<3), make([]byte, 84)...))
	}
	b, e, err = s.call(opOpen, file, u32(unix.O_RDONLY), u32(0))
	if err != nil || e != 0 {
		return fmt.Errorf("control: open: %v %v", e, err)
	}
	fh := le.Uint64(b)
	try("write to what is open to read", opWrite, file, u64(fh), u64(0), u32(4), make([]byte, 20), []byte("EVIL"))
	try("read past all", opRead, file, u64(fh), u64(math.MaxInt64), u32(4096), make([]byte, 20))
	try("read too much", opRead, file, u64(fh), u64(0), u32(math.MaxUint32), make([]byte, 20))
	b, e, err = s.call(opRead, file, u64(fh), u64(0), u32(4096), make([]byte, 20))
	fmt.Printf("control: read %q %v %v\n", b, e, err)
	b, e, err = s.call(opCreate, root, u32(unix.O_RDWR), u32(create), u64(0), str("raw-made"))
	if err == nil && e == 0 {
		_, e, err = s.call(opWrite, le.Uint64(b), u64(le.Uint64(b[128:])), u64(0), u32(3), make([]byte, 20), []byte("raw"))
	}
	fmt.Printf("control: made %v %v\n", e, err)
	fmt.Printf("tries %d\n", tries)
	return nil
}

// race is race without a kernel between: the node of a folder is used while its
// name becomes a link.
func (s *speaker) race(length time.Duration) error {
	s.call(opMkdir, 1, u64(0o755), str("dir"))
	s.call(opSymlink, 1, str("link"), str("../outside"))
	var stop atomic.Bool
	var tries, swaps, created atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		for !stop.Load() {
			if _, e, err := s.call(opRename2, 1, u64(1), u64(unix.RENAME_EXCHANGE), str("dir"), str("link")); err == nil && e == 0 {
				swaps.Add(1)
			} else if err != nil {
				return
			}
		}
	})
	for range 3 {
		all.Go(func() {
			for !stop.Load() {
				b, e, err := s.call(opLookup, 1, str("dir"))
				if err != nil {
					return
				}
				if e != 0 {
					continue
				}
				dir := le.Uint64(b)
				tries.Add(3)
				b, e, _ = s.call(opCreate, dir, u32(unix.O_RDWR|unix.O_TRUNC), u32(0o644), u64(0), str("canary"))
				if e == 0 && len(b) >= 136 {
					created.Add(1)
					node, fh := le.Uint64(b), le.Uint64(b[128:])
					s.call(opWrite, node, u64(fh), u64(0), u32(7), make([]byte, 20), []byte("ESCAPED"))
					s.call(opRelease, node, u64(fh), make([]byte, 16))
				}
				s.call(opMkdir, dir, u64(0o755), str("made"))
				s.call(opUnlink, dir, str("canary"))
			}
		})
	}
	attack(length, &tries, &swaps, &created)
	stop.Store(true)
	all.Wait()
	fmt.Printf("tries %d swaps %d created %d\n", tries.Load(), swaps.Load(), created.Load())
	return nil
}

// flood opens what it can: 300 streams that say nothing, half of it, a wrong
// name, the name of a share that is served, and more than a name may have. It
// holds them, says so in a file, and tells at last how many the host has ended.
func flood(tag, mark string) error {
	says := [][]byte{nil, {40}, attach("none"), attach(tag), append([]byte{0xff, 0xff, 0x7f}, make([]byte, 64)...), attach(tag)[:3]}
	var open []*os.File
	refused := 0
	for i := range 600 {
		f, err := dial()
		if err != nil {
			refused++
			continue
		}
		f.Write(says[i%len(says)])
		open = append(open, f)
	}
	fmt.Printf("open %d refused %d\n", len(open), refused)
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		return err
	}
	var ended atomic.Int64
	for _, f := range open {
		go func() {
			f.Read(make([]byte, 1))
			ended.Add(1)
		}()
	}
	begin := time.Now()
	for time.Sleep(8 * time.Second); ended.Load() < 100 && time.Since(begin) < 2*time.Minute; { // the length of the attack, longer on a slow machine
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Printf("ended %d\n", ended.Load())
	return nil
}
