package qemu

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

func TestCounterKHz(t *testing.T) {
	from := moment{time.Now(), 1e15, 100 * time.Nanosecond}
	after := func(spread time.Duration, count uint64, slack time.Duration) moment {
		return moment{from.when.Add(spread), from.count + count, slack}
	}
	for _, tc := range []struct {
		name string
		to   moment
		khz  int
	}{
		{"as it should be", after(10*time.Millisecond, 25_961_300, 100*time.Nanosecond), 2_596_130},
		{"interrupted while it read", after(10*time.Millisecond, 25_961_300, 10*time.Microsecond), 0},
		{"too soon", after(time.Microsecond, 2596, 100*time.Nanosecond), 0},
		{"at once", after(0, 0, 0), 0},
		{"too late", after(time.Hour, 9e12, 100*time.Nanosecond), 0},
		{"backwards", moment{from.when.Add(10 * time.Millisecond), from.count - 1, 0}, 0},
		{"it stands", after(10*time.Millisecond, 0, 0), 0},
		{"slower than any", after(10*time.Millisecond, 1000, 0), 0},
		{"faster than any", after(10*time.Millisecond, 1e9, 0), 0},
	} {
		if got := counterKHz(from, tc.to); got != tc.khz {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.khz)
		}
	}
}

// measured is the host's counter, measured until it is told.
func measured(t *testing.T) int {
	t.Helper()
	for from, end := readClocks(), time.Now().Add(patience); time.Now().Before(end); {
		if khz := counterKHz(from, readClocks()); khz != 0 {
			return khz
		}
		if from.slack > time.Microsecond {
			from = readClocks()
		}
	}
	t.Fatal("the host's counter cannot be measured")
	return 0
}

// TestCounter: a guest is told how fast the host counts, if that is steady, and believes it: its clock is the
// counter in every boot. The control is a guest that is told to distrust it.
func TestCounter(t *testing.T) {
	cfg := testConfig(t)
	cfg.Initrd = hypervisortest.Initrd(t, hypervisortest.Agent(t))
	d := New(Options{Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	if !steadyCounter() {
		if m := newVM(d, cfg, hypervisor.Handlers{}, facts{accel: Accel{Name: TCG}}, ConfineSpec{}).machine(); m.CounterKHz != 0 {
			t.Errorf("a counter that is not steady is told: %d kHz", m.CounterKHz)
		}
		return
	}
	a, b := measured(t), measured(t)
	if off := a - b; max(off, -off) > a/500 { // each may be wrong by a part of 5,000
		t.Errorf("a steady counter measured twice: %d and %d kHz", a, b)
	}
	for words, trusted := range map[string]bool{"": true, "tsc=unstable": false} {
		said := boot(t, d, cfg, "loglevel=7 "+words)
		told := strings.Contains(strings.Join(d.CommandLine(), " "), "tsc_early_khz=")
		if told != (d.Accel().Name == TCG) {
			t.Errorf("told: %t, with %v", told, d.Accel())
		}
		if told && strings.Contains(said, "Switched to clocksource tsc") != trusted {
			t.Errorf("with %q:\n%s", words, said)
		}
	}
}

// boot boots a guest that only says that it lives, and returns its console.
func boot(t *testing.T, d *Driver, cfg hypervisor.Config, words string) string {
	t.Helper()
	cfg.Cmdline = append([]string{ProbeWord}, strings.Fields(words)...)
	said := &console{}
	vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{Console: said.print})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer context.AfterFunc(ctx, func() { vm.Kill() })()
	if err := vm.Wait(); err != nil || !strings.Contains(said.text(), ProbeMark) {
		t.Fatalf("%v; its console:\n%s", err, said.text())
	}
	return said.text()
}
