package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// crashPoints are all points in the source at which a process can be told to
// die; a point that is added is tried without a word here.
func crashPoints(t *testing.T) (all []string) {
	t.Helper()
	call := regexp.MustCompile(`Crash\("([^"]+)"\)`)
	for _, pattern := range []string{"../../guest/*.go", "../../guest/daemon/*.go"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range call.FindAllStringSubmatch(string(b), -1) {
				if !slices.Contains(all, m[1]) {
					all = append(all, m[1])
				}
			}
		}
	}
	if len(all) < 20 {
		t.Fatalf("only %d crash points were found", len(all))
	}
	return all
}

// F02: the daemon or the keeper dies at each point before and after each write,
// rename, start and acknowledgement. Afterwards everything can be read, every
// acknowledged task has one ending that is true, and nothing is left over.
func TestCrashPoints(t *testing.T) {
	for _, point := range crashPoints(t) {
		if point == pointKeep {
			continue // TestCrashKeep
		}
		if point == pointChange {
			continue // TestRecoverAtStart
		}
		if strings.HasPrefix(point, "forget: ") {
			continue // TestCrashForget
		}
		if strings.HasPrefix(point, "once: ") {
			continue // TestKeyedOnceCrash
		}
		if strings.HasPrefix(point, "key: ") || strings.HasPrefix(point, "claim: ") {
			continue // TestKeyedCrash
		}
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newRing2(t)
			mark := filepath.Join(w.work, "mark")
			ran := filepath.Join(w.work, "ran")
			env := []string{"CARREL_CRASH=" + point, "CARREL_CRASH_MARK=" + mark}
			w.env = env
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience) // for all of it
			defer cancel()
			acked := ""
			for round := range 3 { // the life of a guest, as far as it comes; its end is sudden
				err := w.tryStart()
				if err != nil { // it came to the point while it recovered
					err = w.tryStart()
				}
				if err != nil {
					t.Fatal(err)
				}
				c, err := client.Connect(ctx, client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), NoStart: true})
				if err != nil {
					w.d.Wait()
					continue
				}
				_, err = c.StartGuest(ctx, &api.GuestSpec{Name: "box"}, client.GuestOptions{})
				if err == nil || client.CodeOf(err) == "running" {
					if strings.HasPrefix(point, "volume: ") {
						c.CreateVolume(ctx, "cache", 64)
						c.RemoveVolume(ctx, "cache", false)
					}
					c.ChangeEgress(ctx, "box", []*api.EgressRule{{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "a.example"}}, nil)
					p, err := c.StartTask(ctx, client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "echo once >> " + ran}})
					if err == nil {
						acked = p.ID
						if err := p.Wait(); err == nil {
							checkRan(t, ran)
						}
					}
				}
				if _, err := os.Stat(mark); err != nil {
					// The points of a settlement need a keeper that was killed.
					if g, err := c.Guest(ctx, "box"); err == nil && g.KeeperPid > 0 && round > 0 {
						if p, err := c.StartTask(ctx, client.Task{Guest: "box", Args: []string{"sleep", "1000"}}); err == nil {
							if k, err := os.FindProcess(int(g.KeeperPid)); err == nil {
								k.Kill()
							}
							p.Wait()
						}
					}
					c.StopGuest(ctx, "box", time.Second)
					c.RemoveGuest(ctx, "box", true)
				}
				c.Close()
				if _, err := os.Stat(mark); err == nil {
					break
				}
				w.kill()
			}
			if _, err := os.Stat(mark); err != nil {
				t.Fatal("nothing ever came to this point")
			}
			w.kill()
			w.env = nil
			w.start()
			c := w.client()
			gs, err := c.Guests(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range gs {
				if g.State == api.GuestState_GUEST_STATE_DAMAGED {
					t.Errorf("damaged: %s", g.Cause)
				}
			}
			// It can be used as if nothing had been.
			if _, err := c.StartGuest(ctx, &api.GuestSpec{Name: "box"}, client.GuestOptions{}); err != nil && client.CodeOf(err) != "running" {
				t.Fatal(err)
			}
			tasks, err := c.Tasks(ctx, "box")
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range tasks {
				if x.Id != acked {
					continue
				}
				p, err := c.Attach(ctx, "box", x.Id, client.AttachOptions{})
				if err != nil {
					t.Fatal(err)
				}
				var ee *client.ExitError
				if err := p.Wait(); err == nil {
					checkRan(t, ran)
				} else if !errors.As(err, &ee) || !ee.Interrupted {
					t.Errorf("the acknowledged task ended with %v", err)
				}
			}
			var p *client.Process
			eventually(t, "a task can be started", func() bool { // an adopted guest may still be starting
				p, err = c.StartTask(ctx, client.Task{Guest: "box", Args: []string{"true"}})
				return err == nil
			})
			if err := p.Wait(); err != nil {
				t.Fatal(err)
			}
			if err := c.RemoveGuest(ctx, "box", true); err != nil {
				t.Fatal(err)
			}
			left, _ := filepath.Glob(filepath.Join(w.home, "state", "guests", "*"))
			hidden, _ := filepath.Glob(filepath.Join(w.home, "state", "guests", ".*"))
			volumes, _ := os.ReadDir(filepath.Join(w.home, "state", "volumes"))
			if n := len(left) + len(hidden) + len(volumes); n > 0 {
				t.Errorf("left over: %q %q %v", left, hidden, volumes)
			}
		})
	}
}

func checkRan(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 || len(b)%len("once\n") != 0 {
		t.Errorf("a task is said to have succeeded and did not run: %q %v", b, err)
	}
}
