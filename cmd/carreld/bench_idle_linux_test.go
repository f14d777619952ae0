//go:build bench

package main

import (
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// rest measures guests from which nobody wants anything: what one costs that is
// paused, how soon it is there again, and what comes back of memory that it frees.
func (b *bench) rest() {
	w := newRing2(b.T)
	w.bin = vmBinaries(b.T)
	w.env = []string{"CARREL_CACHE=" + b.place.Cache}
	w.restful("{pause: 1s}")
	w.start()
	c := w.client()
	g, err := c.StartGuest(b.Context(), &api.GuestSpec{Name: "rest", MemoryMib: 1024}, client.GuestOptions{})
	if err != nil {
		b.Fatal(err)
	}
	look := func() float64 {
		begin := time.Now()
		files, err := c.Files(b.Context(), "rest", "/etc", "")
		if err == nil {
			_, err = fs.Stat(files, "passwd")
		}
		if err != nil {
			b.Fatal(err)
		}
		return ms(time.Since(begin))
	}
	var first, then, tasks []float64
	for i := range 4*b.n + 1 {
		rests(b.T, c, "rest")
		one, two := look(), look()
		rests(b.T, c, "rest")
		task := b.task(c, client.Task{Guest: "rest", Args: []string{"true"}})
		if i > 0 { // the first turn does not count
			first, then, tasks = append(first, one), append(then, two), append(tasks, task)
		}
	}
	var more []float64
	for i := range first {
		more = append(more, max(0, first[i]-then[i]))
	}
	b.latency("idle_resume", "ms", more, most(100), "how much longer a look at a folder of a paused guest takes than the next one: it goes on, is told the time, and answers by a new connection")
	b.latency("idle_exec", "ms", tasks, limit{}, "`true` in a paused guest through the Go client, from the call to its status")

	const window = 10 * time.Second
	hv := childOf(b.T, int(g.KeeperPid), "-nodefaults")
	rests(b.T, c, "rest")
	<-time.After(window) // Go gives memory back in the background after work, and QEMU ends threads
	pids := map[string]int{"daemon": w.d.Process.Pid, "keeper": int(g.KeeperPid), "qemu": hv}
	before := map[string]float64{}
	for name, pid := range pids {
		before[name] = b.switches(pid)
	}
	<-time.After(window)
	for _, name := range []string{"daemon", "keeper", "qemu"} {
		goal := limit{}
		if name == "daemon" {
			goal = nothing
		}
		b.add(figure{Name: name + "_paused_wakeups", Value: (b.switches(pids[name]) - before[name]) / window.Seconds(), Unit: "per s", N: 1,
			How: fmt.Sprintf("context switches of all its threads in %v, with one guest, which is paused, and idle.pause on", window)}, goal)
	}

	const mib = 300
	memory := func() float64 { return b.memoryOf(hv).shared }
	empty := memory()
	b.task(c, client.Task{Guest: "rest", Stderr: io.Discard, Args: []string{"dd", "if=/dev/zero", "of=/tmp/full", "bs=1M", fmt.Sprint("count=", mib)}})
	full := memory()
	b.task(c, client.Task{Guest: "rest", Args: []string{"sh", "-c", "rm /tmp/full && sleep 10"}})
	b.add(figure{Name: "memory_given_back", Value: (full - memory()) / max(1, full-empty), Unit: "of it", N: 1,
		How: fmt.Sprintf("of what QEMU had resident more (%.0f MB) for %d MiB that a guest had filled, 10 s after it freed them", full-empty, mib)}, least(0.6))
}
