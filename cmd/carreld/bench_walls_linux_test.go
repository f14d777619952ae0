//go:build bench

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/hypervisor/gvisor"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
)

// walls measures the other walls beside the process wall: a run of nothing
// beside bare runsc, the same work in each, and what each holds of the host's
// memory.
func (b *bench) walls() {
	w := newRing2(b.T)
	w.bin = vmBinaries(b.T)
	w.env = []string{"CARREL_CACHE=" + b.place.Cache}
	w.start()
	c := w.client()
	b.gvisorRuns(w, c)
	folder := b.memoryFolder(w, "wall")
	b.plantWork(folder)
	spec := func(name, wall, image string) *api.GuestSpec {
		return &api.GuestSpec{Name: "bench-" + name, Boundary: wall, Image: image, Ephemeral: wall == wallGVisor,
			Shares: []*api.Share{{Path: folder, GuestPath: "/wall", Mode: api.ShareMode_SHARE_MODE_RW}}}
	}
	for _, wall := range []struct {
		name, boundary, image, how string
		n                          int // pairs of the work; 0: none
	}{
		{"process", wallProcess, "", "behind the process wall", 0}, // its work is part boundary's
		{"gvisor", wallGVisor, "", "in gVisor, the default image", b.n},
		{"vm", wallVM, "", "in a machine, the default image", b.n},
	} {
		g, err := c.StartGuest(b.Context(), spec(wall.name, wall.boundary, wall.image), client.GuestOptions{})
		if err != nil {
			b.Fatal(err)
		}
		// One that keeps nothing ends with its first task.
		in, hold := io.Pipe()
		p, err := c.StartTask(b.Context(), client.Task{Guest: g.Name, Stdin: in, Args: []string{"cat"}})
		if err != nil {
			b.Fatal(err)
		}
		b.wallMemory(w, g, wall.name, wall.how)
		if wall.boundary == wallVM && b.accel.Name == qemu.TCG {
			wall.n = 1
		}
		if wall.n > 0 {
			b.work(c, g, wall.name, wall.how, folder, wall.n)
		}
		hold.Close()
		if err := p.Wait(); err != nil {
			b.Fatal(err)
		}
		if err := c.RemoveGuest(b.Context(), g.Name, true); err != nil && client.CodeOf(err) != "not_found" {
			b.Fatal(err)
		}
	}
}

// gvisorRuns times a run in gVisor beside the least that runsc does.
func (b *bench) gvisorRuns(w *world, c *client.Client) {
	platform := b.gvisorPlatform()
	bare := []string{"--root", b.TempDir(), "--platform", platform, "--network", "none", "--ignore-cgroups", "do", "true"}
	run := func(wall string) func() float64 {
		return func() float64 {
			took := b.took(w.carrel("run", "-q", "--boundary", wall, "--no-share", "--", "true"))
			eventually(b.T, "the guest of a run is gone", func() bool {
				left, err := c.Guests(b.Context())
				return err == nil && len(left) == 0
			})
			return took
		}
	}
	x := b.rounds(4*b.n, func() float64 { return b.took(exec.Command("runsc", bare...)) }, run(wallGVisor), run(wallProcess))
	b.latency("runsc_do", "ms", x[0], limit{}, "`runsc --platform "+platform+" --network none --ignore-cgroups do true` to its exit")
	b.latency("gvisor_run", "ms", x[1], limit{}, "`carrel run --boundary gvisor --no-share -- true` to its exit: daemon running, image cached")
	b.latency("gvisor_peer_run", "ms", x[2], limit{}, "the same with `--boundary process`")
	b.ratio("gvisor_run_over_runsc", "runsc_do", x[1], x[0], limit{}, "of one round each")
	b.ratio("gvisor_run_over_process", "gvisor_peer_run", x[1], x[2], limit{}, "of one round each")
}

// gvisorPlatform is the one that the driver takes here.
func (b *bench) gvisorPlatform() string {
	b.Helper()
	o := gvisor.Options{Agent: filepath.Join(vmBinaries(b.T), "carrel-agent"), Shim: []string{filepath.Join(vmBinaries(b.T), "carreld"), "wall", wallGVisor}, CacheDir: b.place.Cache}
	_, _, err := gvisor.New(o).Check(b.Context())
	var known struct{ Name string }
	var text []byte
	if err == nil {
		text, err = os.ReadFile(filepath.Join(b.place.Cache, "gvisor.json"))
	}
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err != nil {
		b.Fatal(err)
	}
	return known.Name
}

// wallMemory adds what a guest that runs nothing holds of the host's memory: all
// of its processes, what several of them share counted once.
func (b *bench) wallMemory(w *world, g *api.Guest, name, how string) {
	time.Sleep(time.Second) // what the start needed ends
	var all memory
	var own []string
	for _, pid := range b.processesOf(w, int(g.KeeperPid)) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // gone
		}
		var pss float64
		for line := range strings.Lines(string(text)) {
			for key, value := range map[string]*float64{"Pss_Anon:": &all.anon, "Pss_File:": &all.file, "Pss_Shmem:": &all.shared, "Pss:": &pss} {
				var kb float64
				if k, _ := fmt.Sscanf(line, key+" %f kB", &kb); k == 1 {
					*value += kb * 1024 / 1e6
				}
			}
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		own = append(own, fmt.Sprintf("%s %.1f", strings.TrimSpace(string(comm)), pss))
	}
	b.Logf("%s: MB of %s", name, strings.Join(own, ", "))
	b.add(figure{Name: name + "_memory", Value: all.own() + all.shared, Unit: "MB", N: 1,
		How: fmt.Sprintf("proportional memory (Pss) of all %d processes of a guest that runs `cat`, %s, one share; %.1f MB of it in files in memory, which is where a guest's own memory lies", len(own), how, all.shared)}, limit{})
}

// processesOf are a guest's: those of its keeper's tree, and those of ours that
// the daemon started beside it. No other guest runs.
func (b *bench) processesOf(w *world, keeper int) (pids []int) {
	parents := map[int]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		stat, _ := os.ReadFile(d + "/stat")
		if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 1 {
			parents[pid], _ = strconv.Atoi(f[1])
		}
	}
	for pid := range parents {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		beside := strings.HasPrefix(exe, w.bin+"/") && (strings.HasSuffix(string(cmd), "\x00egress\x00") || strings.HasSuffix(string(cmd), "\x00share\x00"))
		for up := pid; up > 1 && !beside; up = parents[up] {
			beside = up == keeper
		}
		if beside {
			pids = append(pids, pid)
		}
	}
	return pids
}
