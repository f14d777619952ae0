package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/place"
)

// noises are what one guest does without end: processors, timers, and its disk.
var noises = []string{
	"while :; do :; done",
	`exec python3 -c 'import time
while True: time.sleep(0.000001)'`,
	"while :; do dd if=/dev/zero of=/tmp/noise bs=64k count=64 conv=fsync 2>/dev/null; done",
}

// R08, R09: a guest that burns processors, storms its timer and writes its disk
// without end slows another guest down, and no more: that one's tasks end well,
// the daemon answers, and the noisy one is stopped like any other. How much
// slower is logged and not judged: the machine decides that. Each processor has
// all of it twice, from behind the process wall and from a real machine.
func TestNoisyGuest(t *testing.T) {
	onlyInFull(t)
	copies := 2 * runtime.NumCPU()
	for _, wall := range []string{wallProcess, wallVM} {
		t.Run(wall, func(t *testing.T) {
			w := newRing2(t)
			w.bin = vmBinaries(t)
			p, err := place.Home()
			if err != nil {
				t.Fatal(err)
			}
			w.env = []string{"CARREL_CACHE=" + p.Cache}
			w.start()
			c := w.client()
			for _, name := range []string{"noisy", "quiet"} {
				if _, err := c.StartGuest(t.Context(), &api.GuestSpec{Name: name, MemoryMib: 512, Boundary: wall}, client.GuestOptions{}); err != nil {
					t.Fatalf("%v\nagain: make image, then go test -run %s ./cmd/carreld", err, t.Name())
				}
			}
			measure := func() time.Duration {
				var all []time.Duration
				for i := range 10 {
					begin := time.Now()
					if r := sh(t, c, "quiet", "", fmt.Sprint("echo ", i)); r.out != fmt.Sprintln(i) {
						t.Errorf("the quiet guest: %+v", r)
					}
					if list, err := c.Guests(t.Context()); err != nil || len(list) != 2 {
						t.Errorf("the daemon: %v %v", list, err)
					}
					all = append(all, time.Since(begin))
				}
				slices.Sort(all)
				return all[len(all)/2]
			}
			before := measure() // the control
			up := make(chan struct{}, copies*len(noises))
			var noisy []*client.Process
			for range copies {
				for _, n := range noises {
					p, err := c.StartTask(t.Context(), client.Task{Guest: "noisy", Args: []string{"/bin/sh", "-c", "echo up; " + n},
						Stdout: writerFunc(func(b []byte) (int, error) {
							if strings.Contains(string(b), "up") {
								up <- struct{}{}
							}
							return len(b), nil
						})})
					if err != nil {
						t.Fatal(err)
					}
					noisy = append(noisy, p)
				}
			}
			for range noisy {
				<-up
			}
			during := measure()
			t.Logf("a task of the quiet guest takes %v, and %v beside %d noises", before.Round(time.Microsecond), during.Round(time.Microsecond), len(noisy))
			if list, err := c.Tasks(t.Context(), "noisy"); err != nil || len(list) != len(noisy) || slices.ContainsFunc(list, func(x *api.Task) bool { return over(x.State) }) {
				t.Errorf("the noises ended by themselves: %v %v", list, err)
			}
			if _, err := c.StopGuest(t.Context(), "noisy", time.Second); err != nil {
				t.Error(err)
			}
			for _, p := range noisy {
				if err := p.Wait(); err == nil {
					t.Error("a noise ended well")
				}
			}
			if r := sh(t, c, "quiet", "", "echo still here"); r.out != "still here\n" {
				t.Errorf("afterwards: %+v", r)
			}
		})
	}
}
