package guest

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
)

// TestRestOfMachine has a real guest that is idle paused and go on, and give memory
// back that it has freed.
func TestRestOfMachine(t *testing.T) {
	told := make(chan time.Time, 16)
	r := newRest(slog.New(slog.DiscardHandler), policy.Idle{}, func(since time.Time) { told <- since }, func() { t.Error("it is to be stopped") })
	g := newRealMachine(t, "rest", 1024, r)
	r.begin(g.Guest)
	hear := func(t *testing.T) time.Time {
		t.Helper()
		select {
		case since := <-told:
			return since
		case <-time.After(testPatience):
			t.Fatalf("after %v it was not told to stand still, or to go on", testPatience)
			return time.Time{}
		}
	}

	t.Run("FreedMemory", func(t *testing.T) {
		hv := newHypervisorMemory(t)
		const mib, most = 300, 100 // of what was freed some may stay: reports come in pieces of 2 MiB
		before := hv.mib()
		g.run(t, "sh", "-c", fmt.Sprintf("dd if=/dev/zero of=/tmp/full bs=1M count=%d", mib))
		full := hv.mib()
		if full < before+mib*9/10 {
			t.Fatalf("the control: the guest has filled %d MiB, and the host has %d MiB for it, %d before", mib, full, before)
		}
		g.run(t, "rm", "/tmp/full")
		freed := time.Now()
		var now int64
		for deadline := freed.Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			if now = hv.mib(); now <= full-mib+most {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the guest has freed %d MiB, and 5 minutes later the host has %d MiB for it, %d before that and %d before it all", mib, now, full, before)
			}
		}
		t.Logf("%d MiB at first, %d MiB with %d MiB full, %d MiB %v after they were freed; QEMU's own count: %s",
			before, full, mib, now, time.Since(freed).Round(100*time.Millisecond), hv.resident())
		g.run(t, "sh", "-c", fmt.Sprintf("dd if=/dev/zero of=/tmp/full bs=1M count=%d && rm /tmp/full", mib)) // it has it again when it needs it
	})

	t.Run("Pause", func(t *testing.T) {
		hv := newHypervisorMemory(t)
		mark := g.run(t, "cat", "/proc/sys/kernel/random/boot_id")
		for range 5 {
			r.set(policy.Idle{Pause: time.Second})
			since := hear(t)
			if since.IsZero() {
				t.Fatal("it goes on before it was paused")
			}
			still := hv.wakeups(2 * time.Second)
			r.mu.Lock()
			r.after = policy.Idle{}
			r.mu.Unlock()
			begun := time.Now()
			end, err := r.use(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			goesOn := time.Since(begun)
			now := g.run(t, "cat", "/proc/sys/kernel/random/boot_id")
			whole := time.Since(begun)
			begun = time.Now()
			g.run(t, "cat", "/proc/sys/kernel/random/boot_id")
			t.Logf("it goes on after %v, and has run a task after %v; a task in a guest that runs takes %v", goesOn, whole, time.Since(begun))
			if awake := hv.wakeups(2 * time.Second); still > awake/4 {
				t.Errorf("QEMU woke up %d times in 2 s with a guest that is paused; it does %d times with one that runs", still, awake)
			} else {
				t.Logf("QEMU woke up %d times in 2 s with a guest that is paused, and %d times with one that runs", still, awake)
			}
			if now != mark {
				t.Errorf("it is another boot: %q, not %q", now, mark)
			}
			if since := hear(t); !since.IsZero() {
				t.Errorf("it is said to stand still since %v", since)
			}
			end()
		}
	})
}

// hypervisorMemory is what the host has for this process's one QEMU.
type hypervisorMemory struct {
	t   *testing.T
	pid string
	ram string // its guest's memory, a memfd
}

func newHypervisorMemory(t *testing.T) hypervisorMemory {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is sound
	for _, f := range files {
		b, _ := os.ReadFile(f)
		dir := filepath.Dir(f)
		stat, _ := os.ReadFile(dir + "/stat")
		if !strings.Contains(string(b), "carrel-rest\x00") || !strings.Contains(string(stat), fmt.Sprintf(" %d ", os.Getpid())) {
			continue
		}
		fds, _ := filepath.Glob(dir + "/fd/*")
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, "/memfd:") {
				return hypervisorMemory{t, filepath.Base(dir), fd}
			}
		}
	}
	t.Fatal("there is no QEMU of this test's with a memfd")
	return hypervisorMemory{}
}

// mib is how much of the host's memory the guest's takes. QEMU's resident set has
// what QEMU has looked at of it, and the file all of it.
func (h hypervisorMemory) mib() int64 {
	h.t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(h.ram, &st); err != nil {
		h.t.Fatal(err)
	}
	return st.Blocks * 512 >> 20
}

// resident is what QEMU's status says.
func (h hypervisorMemory) resident() string {
	b, err := os.ReadFile("/proc/" + h.pid + "/status")
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmRSS") {
			out = append(out, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(out, ", ")
}

// wakeups is how often QEMU's threads are put on a processor in a while.
func (h hypervisorMemory) wakeups(in time.Duration) int {
	h.t.Helper()
	before := h.switches()
	time.Sleep(in)
	return h.switches() - before
}

func (h hypervisorMemory) switches() (n int) {
	h.t.Helper()
	files, _ := filepath.Glob("/proc/" + h.pid + "/task/*/status") // the pattern is sound
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // that thread is gone
		}
		for line := range strings.Lines(string(b)) {
			if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "voluntary_ctxt_switches") {
				var k int
				fmt.Sscan(value, &k)
				n += k
			}
		}
	}
	return n
}
