package guest

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
	"github.com/carrel-vm/carrel/images"
)

// init makes this program the one that confines QEMU, as carreld is.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "confine" {
		if err := qemu.ConfineMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// realMachine is a guest on a real machine.
type realMachine struct {
	*Guest
	asked int
}

// newRealMachine starts a guest of a name, with one processor, that may rest.
func newRealMachine(t *testing.T, name string, mib uint32, r *rest) *realMachine {
	t.Helper()
	if testing.Short() {
		t.Skip("the third ring needs a built image and a real machine: make test runs it")
	}
	p, err := place.Home()
	if err != nil {
		t.Fatal(err)
	}
	img, release, err := images.Open(p.Cache).Use(t.Context(), policy.DefaultImage)
	if err != nil {
		t.Fatalf("%v (make image)", err)
	}
	t.Cleanup(release)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	grant, err := policy.Decide(&api.GuestSpec{Name: name, MemoryMib: mib, Cpus: 1}, policy.Default("/nonexistent"))
	if err != nil {
		t.Fatal(err)
	}
	con, err := openConsole(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(con.close)
	g, err := Start(t.Context(), Options{
		Grant: grant, Console: con, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Rest: r,
		Driver: qemu.New(qemu.Options{Shim: []string{self, "confine"}, CacheDir: p.Cache}),
		Parts:  policy.Parts{Dir: t.TempDir(), Kernel: img.Kernel, Initrd: img.Initrd, Root: img.Root},
	})
	if err != nil {
		t.Fatalf("%v\nagain: make image, then go test -run %s ./guest", err, t.Name())
	}
	t.Cleanup(func() { g.Close() })
	return &realMachine{Guest: g}
}

// run runs a command that must end well, and returns what it says.
func (m *realMachine) run(t *testing.T, argv ...string) string {
	t.Helper()
	sp, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer sp.close()
	m.asked++
	e := m.Exec(t.Context(), fmt.Sprint("T", m.asked), &api.TaskSpec{Argv: argv}, sp, newInput())
	sp.seal()
	out, _, _ := readAll(t, sp, 0, false)
	if e.Status != 0 {
		t.Fatalf("%q: %v: %s; the console: %s", argv, e, out, m.console.last())
	}
	return string(out)
}
