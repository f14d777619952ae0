//go:build bench

package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
	"github.com/carrel-vm/carrel/images"
)

// TestBench measures what docs/specification.md promises: make bench. Every
// comparison is made within one run, with the two sides taking turns, so that a
// busy host weighs on both. A goal that is missed is told and fails nothing.
func TestBench(t *testing.T) {
	b := newBench(t)
	w := newRing2(t)
	w.bin = vmBinaries(t)
	w.env = []string{"CARREL_CACHE=" + b.place.Cache}
	w.start()
	c := w.client()
	b.probe(w)
	if b.part("run") {
		b.resident("daemon_fresh", w.d.Process.Pid, limit{}, "VmRSS of a daemon that has served nothing yet")
		b.cold(w)
		b.idle(w)
	}
	if b.part("rest") {
		b.rest()
	}
	if b.part("boundary") {
		b.boundary()
	}
	if b.part("walls") {
		b.walls()
	}
	if b.part("review") {
		b.review()
	}
	if b.part("egress") {
		b.egress()
	}
	if b.part("images") {
		b.images()
	}
	if b.part("carriers") {
		b.carriers(w, false)
	}
	if b.part("layers") {
		b.carriers(w, true)
	}
	if b.part("backend") {
		b.calls()
		b.holders()
	}
	for _, wall := range b.backendWalls() {
		if b.part("tasks") {
			b.tasks(wall)
		}
		if b.part("output") {
			b.output(wall)
		}
		if b.part("pool") {
			b.throughPool(wall)
		}
	}
	if b.part("exec") || b.part("vsock") || b.part("share") {
		m := newBenchMachine(b, w)
		if b.part("exec") {
			b.running(w, c, m)
		}
		if b.part("vsock") {
			b.streams(m)
		}
		if b.part("share") {
			b.shares(m)
		}
	}
	b.write()
}

// part reports whether this part is wanted. CARREL_BENCH_PARTS names those that
// are; empty, all are.
func (b *bench) part(name string) bool {
	return len(b.parts) == 0 || slices.Contains(b.parts, name)
}

// A share process is started by its own program; here that is this one.
func init() {
	if len(os.Args) == 2 && os.Args[1] == "share" {
		if err := runShare(nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(125)
		}
		os.Exit(0)
	}
}

// bench is one run of the benchmarks.
type bench struct {
	figures
	n     int // pairs of each comparison
	parts []string
	place place.Place
	image *images.Image
	accel qemu.Accel
	about machineFacts
}

// machineFacts are what a figure means nothing without.
type machineFacts struct {
	cpu, kernel, qemu, accel, load string
	cores                          int
}

func (f machineFacts) String() string {
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, %s", f.cpu, f.cores, f.kernel, f.qemu, f.accel)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{figures: figures{T: t, out: os.Stdout, commit: commit()}, n: 5, parts: strings.Fields(os.Getenv("CARREL_BENCH_PARTS"))}
	var err error
	if s := os.Getenv("CARREL_BENCH_N"); s != "" {
		if b.n, err = strconv.Atoi(s); err != nil || b.n < 1 {
			t.Fatalf("CARREL_BENCH_N is %q, not a number of 1 or more", s)
		}
	}
	if s := os.Getenv("CARREL_BENCH_FD"); s != "" {
		fd, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("CARREL_BENCH_FD is %q, not a descriptor", s)
		}
		b.out = os.NewFile(uintptr(fd), "figures")
	}
	if b.place, err = place.Home(); err != nil {
		t.Fatal(err)
	}
	if b.image, err = images.Open(b.place.Cache).Get(t.Context(), "default"); err != nil {
		t.Fatalf("%v\nagain: make bench", err)
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	b.about.load = strings.Join(strings.Fields(string(load))[:3], " ")
	b.about.cores = runtime.NumCPU()
	b.about.cpu = cpuModel()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	b.about.kernel = unix.ByteSliceToString(u.Release[:])
	return b
}

// probe asks the driver what it will use.
func (b *bench) probe(w *world) {
	d := qemu.New(qemu.Options{Shim: []string{w.bin + "/carreld", "confine"}, CacheDir: b.place.Cache})
	version, err := d.Version(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if b.accel, err = d.Probe(b.Context(), b.image.Kernel, b.image.Initrd); err != nil {
		b.Fatal(err)
	}
	version, _, _ = strings.Cut(version, ",")
	b.about.qemu = strings.Replace(version, "emulator ", "", 1)
	b.about.accel = map[string]string{qemu.KVM: "KVM", qemu.TCG: "software emulation (TCG)"}[b.accel.Name]
	b.host = b.about.String()
	b.Logf("%v, load %s, n=%d", b.about, b.about.load, b.n)
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}
