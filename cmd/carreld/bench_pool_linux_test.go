//go:build bench

package main

import (
	"fmt"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// throughPool times starts from the pool beside cold ones, and tasks each of which
// has a guest of its own.
func (b *bench) throughPool(wall backendWall) {
	const size = 2
	warm := b.backendWorld(fmt.Sprintf("version: 1\npool: {size: %d, boundary: %s}\n", size, wall.boundary))
	cold := b.backendWorld("")
	c, other := warm.client(), cold.client()
	rest := func() { // nothing of the run before is left, and the pool is full
		eventually(b.T, "the pool is full again", func() bool {
			st, err := c.Status(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			left, err := other.Guests(b.Context())
			return err == nil && len(left) == 0 && st.Guests == 0 && st.GuestsWarm == size
		})
	}
	run := []string{"run", "-q", "--boundary", wall.boundary, "--", "true"}
	x, y := b.turns(wall.starts,
		func() float64 { rest(); return b.took(warm.carrel(run...)) },
		func() float64 { rest(); return b.took(cold.carrel(run...)) })
	const command = "`carrel run --boundary %s -- true` to its exit, an empty folder shared for review, "
	b.latency(wall.name+"_warm_run", "ms", x, limit{}, fmt.Sprintf(command+"a guest of the pool (%d) warm", wall.boundary, size))
	b.latency(wall.name+"_cold_run", "ms", y, limit{}, fmt.Sprintf(command+"by a daemon without a pool, beside which %d warm guests wait", wall.boundary, size))
	b.ratio(wall.name+"_warm_over_cold", wall.name+"_cold_run", x, y, limit{}, "of pairs, in turns; before each the pool is full")

	var claims []float64
	for range wall.starts {
		rest()
		claims = append(claims, b.claim(warm, wall.boundary))
	}
	b.latency(wall.name+"_claim", "ms", claims, most(claimGoal), "of such a run, by `--timings`: the daemon's part \"claimed from the pool\", in which the guest gets its share, rules and owner")

	rest()
	n := 2 * wall.starts
	task := func(int) {
		g, err := c.StartGuest(b.Context(), &api.GuestSpec{Boundary: wall.boundary, Ephemeral: true}, client.GuestOptions{})
		if err != nil {
			b.Fatal(err)
		}
		b.task(c, client.Task{Guest: g.Name, Args: []string{"true"}})
	}
	how := fmt.Sprintf("a guest for each task, from a pool of %d, %s: started, `true` run to its status, and left to be removed; ", size, wall.how)
	b.through(wall.name+"_pool_tasks", 1, n, how+"one after the other", task)
	rest()
	b.through(wall.name+"_pool_tasks_two", 2, n, how+"two clients at once", task)
	rest()
	for _, w := range []*world{warm, cold} {
		if err := w.client().Shutdown(b.Context(), true); err != nil {
			b.Fatal(err)
		}
	}
}

// claim is what the claim took of a run from the pool, in ms.
func (b *bench) claim(w *world, boundary string) float64 {
	b.Helper()
	cmd := w.carrel("run", "-q", "--timings", "--json", "--boundary", boundary, "--", "true")
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %v\n%s", cmd.Args, err, said.String())
	}
	return b.claimed(said.String())
}
