package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// F01 on a real machine: the daemon is killed at random instants while tasks are
// accepted; the machine and its tasks go on under each next daemon.
func testDaemonKilled(t *testing.T, w *world, c *client.Client) {
	kills := scaled(50, 200)
	acked := map[string]int{}
	var starts []time.Duration
	for n := range kills {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		now, err := client.Connect(ctx, client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), NoStart: true})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			p, err := now.StartTask(ctx, client.Task{Guest: "vm", Args: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d >> ~/ran", n)}})
			if err == nil {
				acked[p.ID] = n
			}
		}()
		if n%4 == 0 { // a slow machine acknowledges none before a random instant
			<-done
		} else {
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // the random instant
		}
		w.kill()
		begin := time.Now()
		w.start()
		starts = append(starts, time.Since(begin))
		cancel()
		<-done
		now.Close()
	}
	eventually(t, "the guest is ready under the last daemon and its tasks have ended", func() bool {
		tasks, err := c.Tasks(t.Context(), "vm")
		if err != nil {
			return false
		}
		for _, x := range tasks {
			if !over(x.State) {
				return false
			}
		}
		g, err := c.Guest(t.Context(), "vm")
		return err == nil && g.State == api.GuestState_GUEST_STATE_READY
	})
	ran := map[string]int{}
	for _, f := range strings.Fields(sh(t, c, "vm", "", "cat ~/ran").out) {
		ran[f]++
	}
	tasks, err := c.Tasks(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	lost, wrong := 0, 0
	for id, n := range acked {
		found := false
		for _, x := range tasks {
			if x.Id != id {
				continue
			}
			found = true
			if x.State != api.TaskState_TASK_STATE_EXITED || x.Ending.Status != 0 || ran[fmt.Sprint(n)] != 1 {
				wrong++
				t.Errorf("task %d is %v %v and ran %d times", n, x.State, x.Ending, ran[fmt.Sprint(n)])
			}
		}
		if !found {
			lost++
			t.Errorf("acknowledged task %d is lost", n)
		}
	}
	t.Logf("%d kills, %d acknowledged tasks, %d lost, %d with another ending than theirs; a daemon served again after %s%s", kills, len(acked), lost, wrong, bounds(starts), lossBound(kills, lost))
	if len(acked) == 0 {
		t.Fatal("no task was ever acknowledged: the test shows nothing")
	}
}
