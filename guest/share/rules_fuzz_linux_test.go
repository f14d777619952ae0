package share

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// FuzzRules: whatever a guest sends, in whatever order, a hidden file's contents are in no reply and neither a hidden nor a
// protected file, nor what leads to one, is any other afterwards. Messages are cut from the input as in FuzzServe.
func FuzzRules(f *testing.F) {
	seed := func(build func(g *guest) [][]byte) {
		g := &guest{t: f}
		var in []byte
		for _, m := range build(g) {
			in = append(in, byte(len(m)), byte(len(m)>>8))
			in = append(in, m...)
		}
		f.Add(in)
	}
	seed(func(g *guest) [][]byte { // 2 and 3 are .git and what is looked up next
		return [][]byte{
			g.message(opLookup, rootID, ".git"), g.message(opLookup, 2, "config"), g.message(opOpen, 3, uint64(oRdwr)), g.message(opOpen, 3, uint64(oRdonly)),
			g.message(opRead, 3, readArgs(1, 0, 64)...), g.message(opWrite, 3, writeArgs(1, 0, []byte("evil"))...), g.message(opSetattr, 3, setattrArgs(fattrSize|fattrMode, 0, 1, 0o600, 0)...),
			g.message(opUnlink, 2, "config"), g.message(opLink, rootID, uint64(3), "alias"), g.message(opRename, 2, uint64(rootID), "config", "c"), g.message(opRename, rootID, uint64(rootID), ".git", "g"),
			g.message(opRename2, rootID, uint64(2), uint64(renameExchange), "own", "config"), g.message(opFallocate, 3, uint64(1), uint64(0), uint64(9), uint64(0)),
		}
	})
	seed(func(g *guest) [][]byte {
		return [][]byte{
			g.message(opLookup, rootID, ".env"), g.message(opLookup, rootID, "d"), g.message(opLookup, 2, "key.pem"), g.message(opOpendir, 2, uint64(0)), g.message(opReaddirplus, 2, readArgs(1, 0, 4096)...),
			g.message(opLookup, rootID, "own"), g.message(opRename, rootID, uint64(rootID), "own", ".env"), g.message(opSymlink, rootID, "l", ".env"), g.message(opOpen, 4, uint64(0)),
			g.message(opRename2, 2, uint64(rootID), uint64(renameExchange), "key.pem", "own"), g.message(opRename, rootID, uint64(rootID), "d", "testdata"), g.message(opMkdir, rootID, uint64(0o755), "testdata"),
			g.message(opRename, rootID, uint64(5), "d", "x"), g.message(opLookup, 5, "x"), g.message(opLookup, 6, "key.pem"), g.message(opOpen, 7, uint64(0)), g.message(opRead, 7, readArgs(2, 0, 64)...),
		}
	})
	const secret = "a secret of the host's"
	files := map[string]string{".env": secret, "d/key.pem": secret, ".git/config": "[core]", ".git/hooks/x": "#!", ".envrc": "x", "own": "own", "e/": ""}
	set := compile(f, rules.Options{Mode: rules.ReadWrite})
	out := make([]byte, 8192)
	f.Fuzz(func(t *testing.T, in []byte) {
		for name, pin := range map[string]func(string) (backend, stat, error){"openat2": pin, "os.Root": pinPortable} {
			root, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			layout(t, root, files)
			pinned, err := openRoot(root, pin)
			if err != nil {
				t.Fatal(err)
			}
			s := New(pinned, Options{Rules: set, MaxBytes: 1 << 20, MaxEntries: 100, MaxNodes: 100, MaxHandles: 20, MinFree: 1})
			newGuest(t, s)
			for rest := in; len(rest) >= 2; {
				n := min(int(rest[0])|int(rest[1])<<8, len(rest)-2)
				m := append([]byte(nil), rest[2:2+n]...)
				rest = rest[2+n:]
				if n >= inHeaderSize {
					le.PutUint32(m, uint32(n))
					m[36], m[37] = 0, 0
				}
				if n := s.Serve(m, out); n > 0 && bytes.Contains(out[:n], []byte(secret)) {
					t.Fatalf("%s: a hidden file's contents were sent", name)
				}
			}
			if err := s.Err(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want(t, "close", s.Close(), nil)
			for _, p := range []string{".env", ".git/config", ".git/hooks/x", ".envrc"} {
				if got, err := os.ReadFile(filepath.Join(root, p)); err != nil || string(got) != files[p] {
					t.Fatalf("%s: %s is %q, %v", name, p, got, err)
				}
			}
		}
	})
}
