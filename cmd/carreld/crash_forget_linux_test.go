package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// F02, too: the daemon dies as it has a guest forget what was thrown away while that
// did not run. The next one has done with it before a task runs there: the guest's
// next start would take what the task has changed.
func TestCrashForget(t *testing.T) {
	for point, told := range map[string]bool{"forget: before the guest is told": false, "forget: told, before that is written down": false, "forget: written down": true} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newRing2(t)
			w.start()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			folder, mark := filepath.Join(filepath.Dir(w.work), "folder"), filepath.Join(w.work, "mark")
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			c := w.client()
			spec := &api.GuestSpec{Name: "box", Shares: []*api.Share{{Path: folder, Mode: api.ShareMode_SHARE_MODE_REVIEW}}}
			if _, err := c.StartGuest(ctx, spec, client.GuestOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.StopGuest(ctx, "box", 0); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Discard(ctx, "box"); err != nil {
				t.Fatal(err)
			}
			list := filepath.Join(w.home, "state", "guests", "box", "drops")
			if _, err := os.Stat(list); err != nil {
				t.Fatal("nothing is to be forgotten: ", err)
			}
			w.kill()
			w.env = []string{"CARREL_CRASH=" + point, "CARREL_CRASH_MARK=" + mark}
			w.start()
			if _, err := w.client().StartGuest(ctx, &api.GuestSpec{Name: "box"}, client.GuestOptions{}); err == nil {
				t.Error("the daemon outlived the point")
			}
			w.d.Wait()
			if _, err := os.Stat(mark); err != nil {
				t.Fatal("the daemon did not come to this point: ", err)
			}
			if _, err := os.Stat(list); os.IsNotExist(err) != told {
				t.Errorf("the list of what is to be forgotten, at that point: %v", err)
			}
			w.env = nil
			w.start()
			p, err := w.client().StartTask(ctx, client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "test ! -e " + list}})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); err != nil { // it runs on the host
				t.Error("a task ran while something was still to be forgotten: ", err)
			}
		})
	}
}
