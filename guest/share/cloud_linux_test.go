package share

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A placeholder is listed; nothing reads, replaces or removes it.
func TestPlaceholders(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		b, portable := s.back.(*rootBackend)
		if !portable {
			t.Skip("Linux has no mark of a placeholder")
		}
		layout(t, root, map[string]string{"cloudy.txt": "would be fetched", "cloudy/f": "", "here": "x"})
		b.cloud = func(info fs.FileInfo) bool { return strings.HasPrefix(info.Name(), "cloudy") }
		g := newGuest(t, s)
		plain, plus := g.names(rootID)
		if len(plain) != 3 || len(plus) != 3 {
			t.Errorf("listed: %q, %q", plain, plus)
		}
		file, dir := g.walk("cloudy.txt"), g.walk("cloudy")
		for _, flags := range []uint32{oRdonly, oWronly, oRdwr | oTrunc} {
			g.refused("OPEN", opOpen, file, []any{flags, uint32(0)}, eNODATA)
		}
		g.refused("SETATTR size", opSetattr, file, setattrArgs(fattrSize, 0, 0, 0, 0), eNODATA)
		g.refused("CREATE", opCreate, rootID, []any{uint32(oRdwr), uint32(0o644), uint64(0), "cloudy.txt"}, eNODATA)
		g.refused("OPENDIR", opOpendir, dir, []any{uint64(0)}, eNODATA)
		g.refused("UNLINK", opUnlink, rootID, []any{"cloudy.txt"}, ePERM)
		g.refused("RMDIR", opRmdir, rootID, []any{"cloudy"}, ePERM)
		g.refused("RENAME over", opRename, rootID, []any{uint64(rootID), "here", "cloudy.txt"}, ePERM)
		if c, err := os.ReadFile(filepath.Join(root, "cloudy.txt")); err != nil || len(c) != 16 {
			t.Errorf("it has become %q, %v", c, err)
		}
		b.cloud = nil // the control: it was made available
		g.open(file, oRdwr)
		g.must(opUnlink, rootID, "cloudy.txt")
	})
}
