package share

import (
	"testing"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// plain gives a share that has no rules yet those under which everything is allowed.
func plain(t testing.TB, o Options) Options {
	t.Helper()
	if o.Rules == nil {
		o.Rules = plainRules(t, rules.ReadWrite)
	}
	return o
}

func plainRules(t testing.TB, m rules.Mode) *rules.Set {
	t.Helper()
	return compile(t, rules.Options{Mode: m, Plain: true})
}

func compile(t testing.TB, o rules.Options) *rules.Set {
	t.Helper()
	s, err := rules.Compile(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// guest speaks FUSE to a server by hand: what a hostile kernel can send, and no kernel would.
type guest struct {
	t      testing.TB
	s      *Server
	unique uint64
	out    []byte
}

// newGuest has said INIT.
func newGuest(t testing.TB, s *Server) *guest {
	t.Helper()
	g := &guest{t: t, s: s, out: make([]byte, MaxMessage)}
	if _, e := g.call(opInit, 0, uint32(7), uint32(41), uint32(1<<20), ^uint32(0)); e != ok {
		t.Fatalf("INIT: %v", e)
	}
	return g
}

// message builds one: uint32 and uint64 as they are, a string with its NUL, bytes without.
func (g *guest) message(op opcode, node uint64, parts ...any) []byte {
	g.t.Helper()
	g.unique++
	m := make([]byte, inHeaderSize)
	le.PutUint32(m[4:], uint32(op))
	le.PutUint64(m[8:], g.unique)
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
		default:
			g.t.Fatalf("cannot send a %T", p)
		}
	}
	le.PutUint32(m, uint32(len(m)))
	return m
}

// send gives the reply's body, and ^0 as errno if there was no reply.
func (g *guest) send(m []byte) ([]byte, errno) {
	g.t.Helper()
	n := g.s.Serve(m, g.out)
	if n == 0 {
		return nil, -1
	}
	r := g.out[:n]
	if int(le.Uint32(r)) != n || len(m) >= inHeaderSize && le.Uint64(r[8:]) != le.Uint64(m[8:]) {
		g.t.Fatalf("reply of %d bytes with header %x", n, r[:outHeaderSize])
	}
	e := errno(-int32(le.Uint32(r[4:])))
	if e != ok && n != outHeaderSize || e < 0 {
		g.t.Fatalf("%d bytes with %v", n, e)
	}
	return r[outHeaderSize:], e
}

func (g *guest) call(op opcode, node uint64, parts ...any) ([]byte, errno) {
	g.t.Helper()
	return g.send(g.message(op, node, parts...))
}

// must is a call that has to work: a positive control, or a step to one.
func (g *guest) must(op opcode, node uint64, parts ...any) []byte {
	g.t.Helper()
	b, e := g.call(op, node, parts...)
	if e != ok {
		g.t.Fatalf("operation %d on node %d with %v: %v", op, node, parts, e)
	}
	return append([]byte(nil), b...)
}

// refused is a call that has to fail, in one of the ways given.
func (g *guest) refused(what string, op opcode, node uint64, parts []any, ways ...errno) {
	g.t.Helper()
	_, e := g.call(op, node, parts...)
	for _, w := range ways {
		if e == w {
			return
		}
	}
	g.t.Errorf("%s: %v, want one of %v", what, e, ways)
}

func (g *guest) lookup(parent uint64, name string) uint64 {
	g.t.Helper()
	return le.Uint64(g.must(opLookup, parent, name))
}

func (g *guest) mkdir(parent uint64, name string) uint64 {
	g.t.Helper()
	return le.Uint64(g.must(opMkdir, parent, uint32(0o755), uint32(0), name))
}

// create makes and opens a file for reading and writing.
func (g *guest) create(parent uint64, name string) (node, fh uint64) {
	g.t.Helper()
	b := g.must(opCreate, parent, uint32(oRdwr), uint32(0o644), uint32(0), uint32(0), name)
	return le.Uint64(b), le.Uint64(b[entryOutSize:])
}

func (g *guest) open(node uint64, flags uint32) uint64 {
	g.t.Helper()
	return le.Uint64(g.must(opOpen, node, flags, uint32(0)))
}

func readArgs(fh, off uint64, size uint32) []any {
	return []any{fh, off, size, uint32(0), uint64(0), uint32(0), uint32(0)}
}

func writeArgs(fh, off uint64, data []byte) []any {
	return []any{fh, off, uint32(len(data)), uint32(0), uint64(0), uint32(0), uint32(0), data}
}

func (g *guest) write(node, fh, off uint64, data string) {
	g.t.Helper()
	if b := g.must(opWrite, node, writeArgs(fh, off, []byte(data))...); int(le.Uint32(b)) != len(data) {
		g.t.Fatalf("wrote %d of %d bytes", le.Uint32(b), len(data))
	}
}

func (g *guest) read(node, fh uint64) string {
	g.t.Helper()
	return string(g.must(opRead, node, readArgs(fh, 0, 4096)...))
}

// setattrArgs is struct fuse_setattr_in.
func setattrArgs(valid uint32, fh, size uint64, mode, uid uint32) []any {
	return []any{
		valid, uint32(0), fh, size, uint64(0), uint64(0), uint64(0), uint64(0),
		uint32(0), uint32(0), uint32(0), mode, uint32(0), uid, uid, uint32(0),
	}
}

func (g *guest) release(node, fh uint64) {
	g.t.Helper()
	g.must(opRelease, node, fh, uint32(0), uint32(0), uint64(0))
}

// nodes counts what the server remembers.
func (g *guest) nodes() int {
	g.s.tree.mu.Lock()
	defer g.s.tree.mu.Unlock()
	return len(g.s.tree.byID)
}
