package share

import (
	"maps"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// notHere are tests of go-fuse's suite that are not for this server, or not for one of its backends.
var notHere = map[string]struct{ backend, why string }{
	"XAttr":               {"", "extended attributes are not served"},
	"XAttrLarge":          {"", "extended attributes are not served"},
	"FcntlFlockLocksFile": {"", "it fails in a plain folder, too: one process does not lock itself out"},
	"OpenSymlinkRace":     {"", "a name that is replaced twice while one open looks it up is ESTALE, which the suite does not count"},
	"Fallocate":           {"os.Root", "there is no portable call"},
	"FallocateKeepSize":   {"os.Root", "there is no portable call"},
	"SetattrSymlink":      {"", "the calls for a link's own times take any name of the host, and are refused to a confined server (change_linux.go)"},
}

// TestPosix runs go-fuse's suite, which is written for file systems in general, through the kernel. The same suite in a plain
// folder is the control: what fails there says nothing.
func TestPosix(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		t.Run(name, func(t *testing.T) {
			not, is := notHere[name]
			if is && not.backend == "" {
				t.Skip(not.why)
			}
			eachBackend(t, Options{MinFree: 1}, func(t *testing.T, s *Server, root string) {
				if _, portable := s.back.(*rootBackend); is && portable == (not.backend == "os.Root") {
					t.Skip(not.why)
				}
				posixtest.All[name](t, hostMount(t, s, root))
			})
			t.Run("plain folder", func(t *testing.T) { posixtest.All[name](t, t.TempDir()) })
		})
	}
}
