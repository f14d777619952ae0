//go:build bench

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// backendWall is a wall with as much work as it does in a minute or two here.
type backendWall struct {
	name, boundary, how string
	tasks, starts       int
	output              int64 // bytes through attach
}

func (b *bench) backendWalls() []backendWall {
	return []backendWall{
		{name: "process", boundary: wallProcess, tasks: 40 * b.n, starts: 4 * b.n, output: 1 << 30, how: "behind the process wall"},
		{name: "vm", boundary: wallVM, tasks: 10 * b.n, starts: max(b.n, 2), output: 128 << 20, how: "in a machine"},
	}
}

// backendWorld starts a daemon of the release build, with a policy if there is one.
func (b *bench) backendWorld(policy string) *world {
	b.Helper()
	w := newRing2(b.T)
	w.bin = vmBinaries(b.T)
	w.env = []string{"CARREL_CACHE=" + b.place.Cache}
	if policy != "" {
		dir := filepath.Join(w.home, "config")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		write(b.T, filepath.Join(dir, "policy.yaml"), policy)
	}
	w.start()
	return w
}

// calls times what an app that drives the daemon does all the time: a call, on a connection that is there and on one of its own.
func (b *bench) calls() {
	w := b.backendWorld("")
	socket := filepath.Join(w.work, "echo")
	b.Cleanup(b.start(exec.Command(os.Args[0], "http-echo", socket), nil))
	eventually(b.T, "the echo listens", func() bool { _, err := os.Stat(socket); return err == nil })
	c, h := w.client(), echoClient(socket)
	list := func(c *client.Client) float64 {
		begin := time.Now()
		if gs, err := c.Guests(b.Context()); err != nil || len(gs) != 0 {
			b.Fatalf("%v %v", gs, err)
		}
		return ms(time.Since(begin))
	}
	x := b.rounds(200*b.n,
		func() float64 { return list(c) },
		func() float64 { return b.echo(h) },
		func() float64 {
			begin := time.Now()
			c, err := client.Connect(b.Context(), client.Options{Home: w.home, NoStart: true})
			if err != nil {
				b.Fatal(err)
			}
			list(c)
			c.Close()
			return ms(time.Since(begin))
		},
		func() float64 {
			begin := time.Now()
			h := echoClient(socket)
			b.echo(h)
			h.CloseIdleConnections()
			return ms(time.Since(begin))
		})
	b.tail("api_call", x[0], limit{}, "a call by the Go client on a connection that is there: the list of guests, of which there are none")
	b.tail("echo_call", x[1], limit{}, "20 bytes to an echo of net/http and back, HTTP/2 over a Unix socket, on a connection that is there")
	b.ratio("api_call_over_echo", "echo_call", x[0], x[1], limit{}, "of one round each")
	b.tail("api_connect_call", x[2], limit{}, "the same call by a client that is made for it: it looks whose socket it is, connects, asks for the version, and is closed")
	b.tail("echo_connect_call", x[3], limit{}, "the same echo on a connection of its own")
	b.ratio("api_connect_call_over_echo", "echo_connect_call", x[2], x[3], limit{}, "of one round each")
}

// oneGuest starts a guest, and returns what stops it.
func (b *bench) oneGuest(wall backendWall) (w *world, c *client.Client, g *api.Guest, stop func()) {
	b.Helper()
	w = b.backendWorld("")
	c = w.client()
	g, err := c.StartGuest(b.Context(), &api.GuestSpec{Name: "bench", Boundary: wall.boundary}, client.GuestOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return w, c, g, func() {
		if _, err := c.StopGuest(b.Context(), g.Name, 10*time.Second); err != nil {
			b.Fatal(err)
		}
	}
}

// tasks runs tasks in one guest.
func (b *bench) tasks(wall backendWall) {
	w, c, g, stop := b.oneGuest(wall)
	defer stop()
	one := client.Task{Guest: g.Name, Args: []string{"true"}}
	for range 5 {
		b.task(c, one) // do not count
	}
	const tasks = "`true`, by the Go client, from the call to its status; "
	b.through(wall.name+"_tasks", 1, wall.tasks, tasks+wall.how+", in one guest, one task after the other", func(int) { b.task(c, one) })
	var cs []*client.Client
	for range crowd {
		cs = append(cs, w.client())
	}
	b.through(wall.name+"_tasks_crowd", crowd, 2*wall.tasks, fmt.Sprintf("%s%s, in one guest, %d clients at once", tasks, wall.how, crowd), func(i int) { b.task(cs[i], one) })
}

// crowd is how many clients work at once.
const crowd = 8

// through has clients do n things in all, and adds how many were done in a second,
// and how long each took.
func (b *bench) through(name string, clients, n int, how string, do func(client int)) {
	b.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	var took []float64
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	begin := time.Now()
	for i := range clients {
		all.Go(func() {
			for range work {
				from := time.Now()
				do(i)
				mu.Lock()
				took = append(took, ms(time.Since(from)))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	rate := float64(n) / time.Since(begin).Seconds()
	if b.Failed() || len(took) != n {
		b.Fatalf("%s: %d of %d were done", name, len(took), n)
	}
	b.add(figure{Name: name + "_rate", Value: rate, Unit: "per s", N: n, How: how + ": how many in a second"}, limit{})
	b.tail(name, took, limit{}, how)
}

// holders adds what daemon and keepers hold of the host's memory.
func (b *bench) holders() {
	for _, wall := range []struct{ name, boundary, how string }{{"process", wallProcess, "behind the process wall"}, {"vm", wallVM, "in machines"}} {
		w := b.backendWorld("")
		c := w.client()
		var keepers []float64
		for n := range 5 {
			if n > 0 {
				g, err := c.StartGuest(b.Context(), &api.GuestSpec{Name: fmt.Sprint("bench", n), Boundary: wall.boundary, MemoryMib: 512}, client.GuestOptions{})
				if err != nil {
					b.Fatal(err)
				}
				b.task(c, client.Task{Guest: g.Name, Args: []string{"true"}})
			}
			if n != 0 && n != 1 && n != 4 {
				continue
			}
			if n == 0 && wall.boundary != wallProcess {
				continue // it is the same daemon
			}
			<-time.After(3 * time.Second) // what the start needed ends
			how := "proportional memory (Pss) of the daemon with no guest yet"
			name := "backend_daemon_0"
			if n > 0 {
				name, how = fmt.Sprintf("backend_daemon_%s_%d", wall.name, n), fmt.Sprintf("of the daemon with %d running %s, each of which has run a task", n, wall.how)
			}
			b.add(figure{Name: name, Value: b.pss(w.d.Process.Pid), Unit: "MB", N: 1, How: how}, limit{})
		}
		gs, err := c.Guests(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for _, g := range gs {
			keepers = append(keepers, b.pss(int(g.KeeperPid)))
		}
		b.median("backend_keeper_"+wall.name, "MB", keepers, limit{}, "proportional memory (Pss) of a keeper, without the guest's own memory, four running "+wall.how+", each of which has run a task")
		if err := c.Shutdown(b.Context(), true); err != nil {
			b.Fatal(err)
		}
	}
}

// pss is what a process holds, its share of what several hold; memory of a guest's,
// which lies in files in memory, is not in it.
func (b *bench) pss(pid int) (mb float64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		for _, key := range []string{"Pss_Anon:", "Pss_File:"} {
			var kb float64
			if n, _ := fmt.Sscanf(line, key+" %f kB", &kb); n == 1 {
				mb += kb * 1024 / 1e6
			}
		}
	}
	if mb == 0 {
		b.Fatalf("process %d holds nothing: %s", pid, text)
	}
	return mb
}
