package gvisor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// asWall is the argument with which the test program is a wall process.
const asWall = "wall-under-test"

// cache is the tests' own: the platform is found out once.
var cache string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asWall {
		if err := WallMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	var err error
	if cache, err = os.MkdirTemp("", "carrel-gvisor-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(cache)
	os.Exit(code)
}

func newDriver(t testing.TB, agent string) *Driver {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Agent: agent, Shim: []string{self, asWall}, CacheDir: cache})
}

// image packs the folder that fill fills and returns the image's path.
func image(t testing.TB, fill func(tree string)) string {
	t.Helper()
	tree := t.TempDir()
	for _, d := range []string{"bin", "etc", "home", "root", "tmp", "run", "proc", "dev", "sys"} {
		if err := os.Mkdir(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fill(tree)
	path := filepath.Join(t.TempDir(), "root.erofs")
	if out, err := exec.Command("mkfs.erofs", path, tree).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (scripts/setup installs it)", err, out)
	}
	return path
}

func TestConformance(t *testing.T) {
	program := hypervisortest.Guest(t)
	hypervisortest.Conformance(t, hypervisortest.Suite{
		New:    func(t *testing.T) hypervisor.Driver { return newDriver(t, program) },
		Config: hypervisor.Config{Kernel: "/none", Initrd: "/none", Root: image(t, func(string) {}), CPUs: 1, MemoryMiB: 256},
		Kills:  20,
		Boot:   6 * time.Second,
	})
}

// Daemons of several users, or homes, may find out at the same time what works here:
// their sandboxes do not get in each other's way.
func TestProbesAtOnce(t *testing.T) {
	d := newDriver(t, hypervisortest.Guest(t))
	runsc, err := findRunsc("")
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.probe(t.Context(), runsc)
	if err != nil {
		t.Fatal("control: ", err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 3 {
				if err := d.try(t.Context(), runsc, p.Name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
