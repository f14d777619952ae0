//go:build bench

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// memory is what the kernel says of one process, in MB: anonymous pages, pages
// of files, and shared memory, which is the guest's own.
type memory struct{ anon, file, shared float64 }

func (m memory) own() float64 { return m.anon + m.file }

func (b *bench) memoryOf(pid int) memory {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	var m memory
	for line := range strings.Lines(string(text)) {
		for name, value := range map[string]*float64{"RssAnon:": &m.anon, "RssFile:": &m.file, "RssShmem:": &m.shared} {
			var kb float64
			if n, _ := fmt.Sscanf(line, name+" %f kB", &kb); n == 1 {
				*value = kb * 1024 / 1e6
			}
		}
	}
	if m.own() == 0 {
		b.Fatalf("process %d holds no memory", pid)
	}
	return m
}

// resident adds what one process holds.
func (b *bench) resident(name string, pid int, goal limit, how string) {
	m := b.memoryOf(pid)
	b.add(figure{Name: name, Value: m.own() + m.shared, Unit: "MB", N: 1, How: how}, goal)
}

// overhead adds what a guest costs the host beyond its own memory, process by
// process. What the keeper, QEMU and a share process have of the guest's memory
// is the same pages, and not counted.
func (b *bench) overhead(g *api.Guest, state, what string) {
	hv, share := childOf(b.T, int(g.KeeperPid), "-nodefaults"), childOf(b.T, int(g.KeeperPid), "share")
	if hv == 0 || share == 0 {
		b.Fatalf("keeper %d has QEMU as process %d and a share as process %d", g.KeeperPid, hv, share)
	}
	const not = ", without the guest's memory; "
	keeper, vmm, sh := b.memoryOf(int(g.KeeperPid)), b.memoryOf(hv), b.memoryOf(share)
	b.add(figure{Name: "keeper_" + state, Value: keeper.own(), Unit: "MB", N: 1, How: "the keeper" + not + what}, limit{})
	b.add(figure{Name: "share_process_" + state, Value: sh.own(), Unit: "MB", N: 1, How: "the share's process" + not + what}, limit{})
	b.add(figure{Name: "qemu_" + state, Value: vmm.own(), Unit: "MB", N: 1, How: fmt.Sprintf("QEMU (%.0f MB of it private)%s%s", vmm.anon, not, what)}, limit{})
	b.add(figure{Name: "guest_memory_" + state, Value: vmm.shared, Unit: "MB", N: 1, How: "what the guest itself has touched of its 2 GiB; " + what}, limit{})
	b.add(figure{Name: "overhead_" + state, Value: keeper.own() + vmm.own(), Unit: "MB", N: 1, How: "keeper and QEMU together" + not + what}, most(60))
}

// idle measures the daemon while no guest runs.
func (b *bench) idle(w *world) {
	const rest, window = 10 * time.Second, 10 * time.Second
	pid := w.d.Process.Pid
	<-time.After(rest) // Go gives memory back in the background after work
	before := b.switches(pid)
	<-time.After(window)
	n := b.switches(pid) - before
	b.add(figure{Name: "daemon_idle_wakeups", Value: n / window.Seconds(), Unit: "per s", N: 1,
		How: fmt.Sprintf("context switches of all its threads in %v, %v after the last cold run", window, rest)}, nothing)
	b.resident("daemon_idle", pid, most(30), "VmRSS of the daemon after the cold runs, no guest left")
}

// switches is how often the process's threads were put on a processor.
func (b *bench) switches(pid int) (n float64) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid)) // the pattern is sound
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "voluntary_ctxt_switches") {
				var k float64
				fmt.Sscan(value, &k)
				n += k
			}
		}
	}
	return n
}
