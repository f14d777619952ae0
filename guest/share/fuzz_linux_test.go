package share

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzServe: arbitrary bytes, as a run of messages, never panic, and never touch what is next to the root. Each message is
// two bytes of length and that many bytes; its length and `unique` are put right, so that the fuzzer gets past the header.
// The canary is compared after every input.
func FuzzServe(f *testing.F) {
	seed := func(build func(g *guest) [][]byte) {
		g := &guest{t: f}
		var in []byte
		for _, m := range build(g) {
			in = append(in, byte(len(m)), byte(len(m)>>8))
			in = append(in, m...)
		}
		f.Add(in)
	}
	seed(func(g *guest) [][]byte {
		return [][]byte{
			g.message(opMkdir, rootID, uint64(0o755), "d"), g.message(opCreate, 2, uint32(oRdwr), uint32(0o644), uint64(0), "f"),
			g.message(opWrite, 3, writeArgs(1, 0, []byte("data"))...), g.message(opRead, 3, readArgs(1, 0, 64)...),
			g.message(opSetattr, 3, setattrArgs(fattrSize|fattrMode, 0, 1, 0o600, 0)...), g.message(opFallocate, 3, uint64(1), uint64(0), uint64(9), uint64(0)),
			g.message(opLseek, 3, uint64(1), uint64(0), uint32(seekHole), uint32(0)), g.message(opRename2, 2, uint64(rootID), uint64(0), "f", "g"),
			g.message(opUnlink, rootID, "g"), g.message(opGetattr, 3, uint64(0), uint64(0)), g.message(opFsync, 3, uint64(1), uint64(0)),
			g.message(opRelease, 3, uint64(1), uint64(0), uint64(0)), g.message(opForget, 3, uint64(1)), g.message(opRmdir, rootID, "d"),
		}
	})
	seed(func(g *guest) [][]byte {
		return [][]byte{
			g.message(opSymlink, rootID, "l", "../outside/canary"), g.message(opReadlink, 2), g.message(opOpen, 2, uint64(oRdwr)),
			g.message(opLink, rootID, uint64(2), "m"), g.message(opOpendir, rootID, uint64(0)), g.message(opReaddir, rootID, readArgs(1, 0, 4096)...),
			g.message(opReaddirplus, rootID, readArgs(1, 0, 4096)...), g.message(opStatfs, rootID), g.message(opLookup, rootID, "m"),
			g.message(opLookup, rootID, "../outside/canary"), g.message(opBatchForget, 0, uint32(9), uint32(0), uint64(2), uint64(9)),
			g.message(opInterrupt, 0, uint64(1)), g.message(opDestroy, 0), g.message(opInit, 0, uint32(7), uint32(38), uint64(0)),
		}
	})
	base, err := filepath.EvalSymlinks(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	outside, canary := filepath.Join(base, "outside"), filepath.Join(base, "outside", "canary")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(canary, []byte("canary"), 0o600); err != nil {
		f.Fatal(err)
	}
	out := make([]byte, 8192)
	f.Fuzz(func(t *testing.T, in []byte) {
		before := fingerprint(t, outside)
		for name, pin := range map[string]func(string) (backend, stat, error){"openat2": pin, "os.Root": pinPortable} {
			root, err := os.MkdirTemp(base, "root")
			if err != nil {
				t.Fatal(err)
			}
			pinned, err := openRoot(root, pin)
			if err != nil {
				t.Fatal(err)
			}
			s := New(pinned, plain(t, Options{MaxBytes: 1 << 20, MaxEntries: 100, MaxNodes: 100, MaxHandles: 20, MinFree: 1}))
			g := newGuest(t, s)
			for rest := in; len(rest) >= 2; {
				n := min(int(rest[0])|int(rest[1])<<8, len(rest)-2)
				m := append([]byte(nil), rest[2:2+n]...)
				rest = rest[2+n:]
				if n >= inHeaderSize {
					le.PutUint32(m, uint32(n))
					m[36], m[37] = 0, 0
				}
				if n := s.Serve(m, out); n < 0 || n > len(out) || n > 0 && n < outHeaderSize {
					t.Fatalf("%s: a reply of %d bytes", name, n)
				}
			}
			if err := s.Err(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if n := g.nodes(); n > 100 {
				t.Fatalf("%d nodes", n)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(root); err != nil {
				t.Fatal(err)
			}
		}
		if after := fingerprint(t, outside); after != before {
			t.Fatalf("outside the root:\n%s\nwas:\n%s", after, before)
		}
		if names, _ := os.ReadDir(base); len(names) != 1 {
			t.Fatalf("next to the root there is %v", names)
		}
	})
}

// FuzzSegments: however a message and its room are cut into pieces, the answer is the same.
func FuzzSegments(f *testing.F) {
	f.Add(uint16(40), uint16(3), uint16(16), uint16(1), []byte("some data"))
	f.Add(uint16(1), uint16(1), uint16(1), uint16(1), []byte{})
	f.Fuzz(func(t *testing.T, cut1, cut2, cut3, cut4 uint16, data []byte) {
		data = data[:min(len(data), 4096)]
		root, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		pinned, err := OpenRoot(root)
		if err != nil {
			t.Fatal(err)
		}
		s := New(pinned, plain(t, Options{MinFree: 1}))
		defer s.Close()
		g := newGuest(t, s)
		node, fh := g.create(rootID, "f")
		m := g.message(opWrite, node, writeArgs(fh, 0, data)...)
		if n := s.ServeSegments(pieces(m, cut1, cut2), pieces(make([]byte, 24), cut3, cut4)); n != 24 {
			t.Fatalf("WRITE in pieces: %d bytes", n)
		}
		room := make([]byte, outHeaderSize+len(data))
		m = g.message(opRead, node, readArgs(fh, 0, uint32(len(data)))...)
		if n := s.ServeSegments(pieces(m, cut3, cut4), pieces(room, cut1, cut2)); n != len(room) || string(room[outHeaderSize:]) != string(data) {
			t.Fatalf("READ in pieces: %d bytes of %d", n, len(room))
		}
		// The first two may also be cut such that nothing is left for the last.
		if got := g.read(node, fh); got != string(data) {
			t.Fatal("other bytes came back")
		}
	})
}

// pieces cuts b in up to three, empty ones included.
func pieces(b []byte, at, then uint16) [][]byte {
	i := min(int(at), len(b))
	j := min(i+int(then), len(b))
	return [][]byte{b[:i:i], b[i:j:j], b[j:]}
}
