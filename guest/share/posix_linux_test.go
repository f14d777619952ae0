package share

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// notHere are tests of go-fuse's suite that are not for this server, or not for one of its backends. What the suite would skip by
// itself is named as well.
var notHere = map[string]struct{ backend, why string }{
	"XAttr":               {"", "extended attributes are not served"},
	"XAttrLarge":          {"", "extended attributes are not served"},
	"FcntlFlockLocksFile": {"", "it fails in a plain folder, too: one process does not lock itself out"},
	"OpenSymlinkRace":     {"", "a name that is replaced twice while one open looks it up is ESTALE, which the suite does not count"},
	"RenameOpenDir":       {"", "an open folder whose name another has taken is ESTALE: a folder is found by its name"},
	"Tmpfile":             {"", "files without a name are not served"},
	"Fallocate":           {"os.Root", "there is no portable call"},
	"FallocateKeepSize":   {"os.Root", "there is no portable call"},
	"SetattrSymlink":      {"", "the calls for a link's own times take any name of the host, and are refused to a confined server (change_linux.go)"},
}

// TestPosix runs go-fuse's suite, which is written for file systems in general, through the kernel. The same suite in a plain
// folder is the control (TestPlainFolder): what fails there says nothing.
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
		})
	}
}

// folderVar names a folder for TestPlainFolder, and says that what it is told is of interest.
const folderVar = "CARREL_TEST_FOLDER"

// TestPlainFolder does in a plain folder what TestPosix and TestFidelity do in a share, as their control.
//
// It is also a guest's program: cmd/carreld's TestSharedVM builds this package's tests without C, and runs this one in a guest's shares,
// whatever carries them. There every case is run, and of each a line says how it ended; of a sequence, what it was told.
func TestPlainFolder(t *testing.T) {
	unix.Umask(0o022)
	dir := os.Getenv(folderVar)
	asked := dir != ""
	if !asked {
		dir = t.TempDir()
	}
	t.Run("posix", func(t *testing.T) {
		for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
			t.Run(name, func(t *testing.T) {
				if not, is := notHere[name]; is && not.backend == "" && !asked {
					t.Skip(not.why)
				}
				if asked {
					t.Cleanup(func() { fmt.Printf("posix %s %s\n", name, verdict(t)) })
				}
				posixtest.All[name](t, folderFor(t, dir))
			})
		}
	})
	t.Run("fidelity", func(t *testing.T) {
		for _, name := range slices.Sorted(maps.Keys(fidelity)) {
			t.Run(name, func(t *testing.T) {
				x := &transcript{dir: folderFor(t, dir)}
				fidelity[name](x)
				for _, line := range x.lines {
					if asked {
						fmt.Printf("fidelity %s: %q\n", name, line)
					}
				}
			})
		}
	})
}

func verdict(t *testing.T) string {
	switch {
	case t.Failed():
		return "fail"
	case t.Skipped():
		return "skip"
	}
	return "pass"
}

// folderFor makes a folder for one case, named after it.
func folderFor(t *testing.T, dir string) string {
	t.Helper()
	_, name, _ := strings.Cut(t.Name(), "/")
	dir = filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
