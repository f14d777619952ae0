package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// ofATask is what a task's own server answers in testEgressAgentDies.
const ofATask = "of-a-task"

// What is steered never comes to a task's own server instead, which listens on
// all addresses at the very port: not while all is well, not when the guest's
// root takes the route away, and not when the agent dies, with which the guest
// ends, and every task.
func testEgressAgentDies(t *testing.T, s *site) {
	server := s.background(t, "root", `cd /tmp && exec python3 -u -c '
import socket
s = socket.create_server(("0.0.0.0", 8443), backlog=64)
print("listening", flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b"`+ofATask+`")
    c.close()'`)
	ask := `import socket
def ask(to):
    try:
        c = socket.create_connection(to, 60)
        c.settimeout(60)
        return c.recv(99).decode()
    except OSError as e:
        return type(e).__name__ + " " + str(e)
`
	outside := `("` + s.net.Host(egresstest.Attacker).Addrs[0] + `", 8443)`
	if got := s.sh(t, "python3 -c '"+ask+`print(ask(("127.0.0.1", 8443)))'`); strings.TrimSpace(got) != ofATask {
		t.Fatalf("control: %s", got)
	}
	got := s.root(t, "ip route del local default dev lo table main; python3 -c '"+ask+`
import time
t = time.monotonic()
print(ask(`+outside+`), "after", time.monotonic() - t)'; ip route add local default dev lo table main src 198.18.0.1; true`)
	if strings.Contains(got, ofATask) || s.boundary == "vm" && !strings.Contains(got, "unreachable") { // at once, and not the TimeoutError of one who waits
		t.Errorf("without the route: %s", got)
	}
	t.Logf("without the route: %s", strings.TrimSpace(got))

	// One task goes on asking until the end.
	var stolen atomic.Bool
	up := make(chan struct{}, 1)
	asking, err := s.c.StartTask(t.Context(), client.Task{Guest: s.guest, Args: []string{"python3", "-u", "-c", ask + "while True: print(ask(" + outside + "))"},
		Stdout: writerFunc(func(b []byte) (int, error) {
			if strings.Contains(string(b), ofATask) {
				stolen.Store(true)
			}
			select {
			case up <- struct{}{}:
			default:
			}
			return len(b), nil
		})})
	if err != nil {
		t.Fatal(err)
	}
	<-up
	s.net.Reset()
	began := time.Now()
	if s.boundary == "vm" {
		// The agent is the guest's first process, which dies of no signal that it has no
		// handler for. Go has one for this, and then ends the process, unlike SIGQUIT without
		// a word: 30 KB of stacks, byte by byte over an emulated serial port, have taken a busy
		// machine a minute. It may die before the task is acknowledged, so how that ends is
		// only told.
		_, err := s.c.StartTask(t.Context(), client.Task{Guest: s.guest, User: "root", Args: []string{"/bin/sh", "-c", "kill -TERM 1"}})
		t.Logf("the task that ends the agent: %v", err)
	} else if err := killOne(s.first(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest ended with its agent", func() bool {
		g, err := s.c.Guest(t.Context(), s.guest)
		return err == nil && g.State == api.GuestState_GUEST_STATE_STOPPED && g.Cause != ""
	})
	t.Logf("the guest ended within %v", time.Since(began).Round(time.Millisecond))
	for _, p := range []*client.Process{asking, server} {
		if err := p.Wait(); err == nil {
			t.Error("a task ended well with its agent dead")
		}
	}
	if stolen.Load() {
		t.Error("what was for the outside came to a task's server")
	}
	s.quiet(t)
	// A new one, since a machine that died so has a disk that nobody unmounted.
	if err := s.c.RemoveGuest(t.Context(), s.guest, true); err != nil {
		t.Fatal(err)
	}
	s.box(t, s.guest, boxEgress)
	url := "http://" + egresstest.Origin + ":8080/"
	if got := s.plain(t, "get", url)[url]; !strings.Contains(got, "this is") {
		t.Errorf("another guest: %s", got)
	}
}

// first is the first process of a guest behind the process wall, its agent: the
// one of the keeper's descendants that is number 1 in a namespace of its own.
func (s *site) first(t *testing.T) int {
	t.Helper()
	keeper := s.keeper(t)
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		pid, _ := strconv.Atoi(filepath.Base(p))
		if n := strings.Fields(status(p, "NSpid")); len(n) < 2 || n[len(n)-1] != "1" {
			continue
		}
		for up := pid; up > 1; up, _ = strconv.Atoi(status(fmt.Sprintf("/proc/%d", up), "PPid")) {
			if up == keeper {
				return pid
			}
		}
	}
	t.Fatal("the guest has no first process")
	return 0
}

// status is a field of a process's status.
func status(proc, field string) string {
	f, err := os.Open(proc + "/status")
	if err != nil {
		return ""
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if v, ok := strings.CutPrefix(in.Text(), field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
