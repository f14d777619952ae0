package guest

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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

// TestClockOfMachine stops a real guest's processors for a while (QMP stop, cont),
// as sleep does, and has it told the time.
func TestClockOfMachine(t *testing.T) {
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
	defer release()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	grant, err := policy.Decide(&api.GuestSpec{Name: "clock", MemoryMib: 512, Cpus: 1}, policy.Default("/nonexistent"))
	if err != nil {
		t.Fatal(err)
	}
	con, err := openConsole(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer con.close()
	g, err := Start(t.Context(), Options{
		Grant: grant, Console: con, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Driver: qemu.New(qemu.Options{Shim: []string{self, "confine"}, CacheDir: p.Cache}),
		Parts:  policy.Parts{Dir: t.TempDir(), Kernel: img.Kernel, Initrd: img.Initrd, Root: img.Root},
	})
	if err != nil {
		t.Fatalf("%v\nagain: make image, then go test -run %s ./guest", err, t.Name())
	}
	defer g.Close()
	asked := 0
	guestTime := func() time.Time {
		t.Helper()
		sp, err := newSpool(t.TempDir(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer sp.close()
		asked++
		e := g.Exec(t.Context(), fmt.Sprint("T", asked), &api.TaskSpec{Argv: []string{"date", "+%s%N"}}, sp, newInput())
		sp.seal()
		out, _, _ := readAll(t, sp, 0, false)
		n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil || e.Status != 0 {
			t.Fatalf("date said %q: %v, %v; the console: %s", out, e, err, con.last())
		}
		return time.Unix(0, n)
	}
	// Emulated clocks run a little too fast or too slow, which is what the rest of
	// it is for.
	const asleep, enough = 5 * time.Second, 3 * time.Second
	if err := g.vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(asleep)
	if err := g.vm.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The control: the guest's clock stood still. No jump of the host's was seen,
	// since there was none.
	if behind := time.Since(guestTime()); behind < enough {
		t.Fatalf("the guest's clock is %v behind after it stood still for %v", behind, asleep)
	}
	before := time.Now()
	g.clock.tell(true)
	got := guestTime()
	// It was told a time after before.
	if got.Before(before) || got.After(time.Now().Add(asleep-enough)) {
		t.Errorf("the guest says %v; it is between %v and %v", got, before, time.Now())
	}
	t.Logf("the guest's clock is %v behind", time.Since(got))
}
