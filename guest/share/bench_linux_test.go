package share

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

func benchServer(b *testing.B) (*Server, *guest, string) {
	b.Helper()
	root, err := filepath.EvalSymlinks(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	pinned, err := OpenRoot(root)
	if err != nil {
		b.Fatal(err)
	}
	s := New(pinned, plain(b, Options{}))
	b.Cleanup(func() { _ = s.Close() })
	return s, newGuest(b, s), root
}

// BenchmarkLookup is one LOOKUP five folders down, without rules of names and with the built-in ones.
func BenchmarkLookup(b *testing.B) {
	for _, plain := range []bool{true, false} {
		b.Run(fmt.Sprintf("plain=%v", plain), func(b *testing.B) { benchLookup(b, plain) })
	}
}

func benchLookup(b *testing.B, plain bool) {
	s, g, _ := benchServer(b)
	s.rules = compile(b, rules.Options{Mode: rules.ReadWrite, Plain: plain})
	dir := uint64(rootID)
	for i := range 5 {
		dir = g.mkdir(dir, fmt.Sprint("folder", i))
	}
	g.create(dir, "file")
	m := g.message(opLookup, dir, "file")
	b.ReportAllocs()
	for b.Loop() {
		s.Serve(m, g.out)
	}
}

// BenchmarkCreate is what a guest's `echo > file` costs here: LOOKUP, CREATE, WRITE, RELEASE.
func BenchmarkCreate(b *testing.B) {
	_, g, _ := benchServer(b)
	dir := g.mkdir(rootID, "dir")
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		name := fmt.Sprint("f", i)
		g.call(opLookup, dir, name)
		node, fh := g.create(dir, name)
		g.write(node, fh, 0, "hello world")
		g.release(node, fh)
	}
}

// BenchmarkReaddirplus lists 1,000 files, 4 KiB of reply at a time as Linux asks.
func BenchmarkReaddirplus(b *testing.B) {
	_, g, root := benchServer(b)
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(root, fmt.Sprint("file", i)), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		fh := le.Uint64(g.must(opOpendir, rootID, uint64(0)))
		for off := uint64(0); ; {
			d := g.must(opReaddirplus, rootID, readArgs(fh, off, 4096)...)
			if len(d) == 0 {
				break
			}
			for len(d) > 0 {
				off = le.Uint64(d[entryOutSize+8:])
				n := entryOutSize + direntSize + (int(le.Uint32(d[entryOutSize+16:]))+7)&^7
				d = d[n:]
			}
		}
		g.must(opReleasedir, rootID, fh, uint64(0), uint64(0))
	}
}

// BenchmarkRead and BenchmarkWrite move 1 MiB in 256 pieces, as a guest's pages lie.
func BenchmarkRead(b *testing.B)  { benchBulk(b, opRead) }
func BenchmarkWrite(b *testing.B) { benchBulk(b, opWrite) }

func benchBulk(b *testing.B, op opcode) {
	s, g, _ := benchServer(b)
	node, fh := g.create(rootID, "f")
	data := make([]byte, 1<<20)
	write := g.message(opWrite, node, writeArgs(fh, 0, data)...)
	if s.Serve(write, g.out) == 0 {
		b.Fatal("no reply")
	}
	head, pages := write[:inHeaderSize+40], write[inHeaderSize+40:]
	in, out := [][]byte{head}, [][]byte{make([]byte, outHeaderSize), make([]byte, 8)}
	room := [][]byte{make([]byte, outHeaderSize)}
	for i := 0; i < len(pages); i += 4096 {
		in = append(in, pages[i:i+4096])
		room = append(room, make([]byte, 4096))
	}
	read := [][]byte{g.message(opRead, node, readArgs(fh, 0, 1<<20)...)}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if op == opWrite {
			s.ServeSegments(in, out)
		} else {
			s.ServeSegments(read, room)
		}
	}
}
