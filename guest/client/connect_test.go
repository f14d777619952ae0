//go:build unix

package client

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
)

// self returns the test binary, which is also the daemon, and ends the daemons
// that were started at p.
func self(t *testing.T, p place.Place) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GORACE", "atexit_sleep_ms=0") // a daemon with the race detector would take a second to end
	t.Cleanup(func() {
		for _, pid := range pids(t, p) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return exe
}

// pids returns the daemons that have served p.
func pids(t *testing.T, p place.Place) (out []int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.Home, "pids"))
	if err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

func TestConnectStartsOneDaemon(t *testing.T) {
	p := home(t)
	exe := self(t, p)
	if _, err := Connect(t.Context(), Options{Home: p.Home, NoStart: true}); !IsNotRunning(err) {
		t.Fatalf("without a daemon: %v, want not running", err)
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			c, err := Connect(t.Context(), Options{Home: p.Home, Daemon: exe})
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		})
	}
	wg.Wait()
	if got := pids(t, p); len(got) != 1 {
		t.Fatalf("six clients at once started the daemons %v, want one", got)
	}
	c, err := Connect(t.Context(), Options{Home: p.Home, NoStart: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Shutdown(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(t.Context(), Options{Home: p.Home, NoStart: true}); !IsNotRunning(err) {
		t.Fatalf("after Shutdown: %v, want not running", err)
	}
}

// Whoever ends the daemon with its guests waits as long as their stop may take: what
// guest.BootTimeout and guest.StopBound are with all that a guest may take more. Else the daemon would be gone,
// and they not.
func TestShutdownWaitsForGuests(t *testing.T) {
	const stop = (60 + 95) * time.Second
	f := newFake()
	told := map[bool]time.Duration{}
	f.shut = func(guests bool, bound time.Duration) { told[guests] = bound }
	c := f.serve(t, home(t))
	for _, guests := range []bool{true, false} {
		if err := c.Shutdown(t.Context(), guests); err != nil {
			t.Fatal(err)
		}
	}
	if told[true] < stop || told[false] == 0 || told[false] >= stop {
		t.Errorf("with guests it waits for %v, without for %v", told[true], told[false])
	}
}

// A socket that a killed daemon left is replaced.
func TestConnectReplacesStaleSocket(t *testing.T) {
	p := home(t)
	exe := self(t, p)
	c, err := Connect(t.Context(), Options{Home: p.Home, Daemon: exe})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	unlock := waitDead(t, p)
	if _, err := os.Lstat(p.Socket); err != nil {
		t.Fatalf("the killed daemon's socket should still be there: %v", err)
	}
	unlock()
	c, err = Connect(t.Context(), Options{Home: p.Home, Daemon: exe})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := pids(t, p); len(got) != 2 {
		t.Fatalf("daemons %v, want two", got)
	}
}

// A daemon that takes a connection and ends before it answers is one that does
// not run.
func TestConnectToADyingDaemon(t *testing.T) {
	dying := func(p place.Place) <-chan error {
		ln, done := listen(t, p), make(chan error, 1)
		go func() {
			conn, err := ln.Accept()
			ln.Close()
			if err == nil {
				err = conn.Close()
			}
			done <- err
		}()
		return done
	}
	p := home(t)
	exe := self(t, p)
	done := dying(p)
	c, err := Connect(t.Context(), Options{Home: p.Home, Daemon: exe})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	waitDead(t, p)()

	p = home(t)
	done = dying(p)
	if _, err := Connect(t.Context(), Options{Home: p.Home, NoStart: true}); !IsNotRunning(err) {
		t.Fatalf("without a start: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A daemon that was killed may hold its lock a moment longer than its socket.
func TestConnectWaitsForTheLock(t *testing.T) {
	p := home(t)
	unlock, err := lockFile(t.Context(), filepath.Join(p.Run, daemonLock))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unlock()
		for t.Context().Err() == nil {
			if _, err := os.Stat(filepath.Join(p.Home, "already")); err == nil {
				return // a first daemon has found it locked
			}
			time.Sleep(time.Millisecond)
		}
	}()
	starts := 0
	c, err := Connect(t.Context(), Options{Home: p.Home, Daemon: self(t, p), Notice: func(string) { starts++ }})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-done
	if got := pids(t, p); len(got) != 1 || starts != 1 {
		t.Errorf("daemons %v, announced %d times", got, starts)
	}
}

// waitDead kills p's daemon and waits for its lock to be free.
func waitDead(t *testing.T, p place.Place) func() {
	t.Helper()
	all := pids(t, p)
	if err := syscall.Kill(all[len(all)-1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockFile(t.Context(), filepath.Join(p.Run, daemonLock))
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func TestConnectSaysWhyTheDaemonDidNotStart(t *testing.T) {
	for _, tc := range []struct{ fake, code, want string }{
		{"refuse", "daemon_start", "error: the state is damaged"},
		{"die", "daemon_start", "last words"},
		{"lie", "daemon_start", "nothing listens"},
	} {
		t.Run(tc.fake, func(t *testing.T) {
			p := home(t)
			exe := self(t, p)
			t.Setenv("FAKE", tc.fake)
			_, err := Connect(t.Context(), Options{Home: p.Home, Daemon: exe})
			if CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "daemon.log") {
				t.Fatalf("got %v, want %s with %q and the log's place", err, tc.code, tc.want)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		p := home(t)
		t.Setenv("PATH", t.TempDir())
		_, err := Connect(t.Context(), Options{Home: p.Home})
		if CodeOf(err) != "daemon_missing" || !strings.Contains(err.Error(), "PATH") {
			t.Fatalf("got %v, want daemon_missing naming PATH", err)
		}
	})
}

func TestDaemonLogFollowsNoLink(t *testing.T) {
	p := home(t)
	if err := os.MkdirAll(p.State, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := openLog(p) // the control: without a link it can be written
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	canary := filepath.Join(p.Home, "canary")
	os.WriteFile(canary, []byte("untouched"), 0o600)
	os.Remove(filepath.Join(p.State, "daemon.log"))
	if err := os.Symlink(canary, filepath.Join(p.State, "daemon.log")); err != nil {
		t.Fatal(err)
	}
	if f, err := openLog(p); err == nil {
		f.Close()
		t.Fatal("the log was opened through a link")
	}
}

func TestVersionSkew(t *testing.T) {
	v := func(version, api_ string) *api.VersionResponse {
		return &api.VersionResponse{Version: version, Api: api_}
	}
	for _, tc := range []struct {
		name string
		own  string
		fake func(*fake)
		ok   bool
	}{
		{"same", "1.2.3", func(f *fake) { f.version = v("1.2.3", APIVersion) }, true},
		{"unversioned daemon", "1.2.3", func(f *fake) { f.version = v("(devel)", APIVersion) }, true},
		{"unversioned client", "dev", func(f *fake) { f.version = v("1.2.3", APIVersion) }, true},
		{"newer daemon", "1.2.3", func(f *fake) { f.version = v("1.3.0", APIVersion) }, false},
		{"older daemon", "1.2.3", func(f *fake) { f.version = v("1.2.2", APIVersion) }, false},
		{"another API", "1.2.3", func(f *fake) { f.version = v("1.2.3", "carrel.v2") }, false},
		{"no API", "1.2.3", func(f *fake) { f.version = v("1.2.3", "") }, false},
		{"does not know the question", "1.2.3", func(f *fake) { f.noSystem = true }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, p := newFake(), home(t)
			tc.fake(f)
			ln := listen(t, p)
			srv, done := serveOn(ln, f.handler())
			defer func() { srv.Close(); <-done }()
			c, err := Connect(t.Context(), Options{Home: p.Home, NoStart: true, Version: tc.own})
			if tc.ok {
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				return
			}
			if CodeOf(err) != "version_skew" || !strings.Contains(err.Error(), "carrel daemon stop") {
				t.Fatalf("got %v, want version_skew and its cure", err)
			}
			if f.noSystem {
				return
			}
			c, err = Connect(t.Context(), Options{Home: p.Home, NoStart: true, Version: tc.own, AnyVersion: true})
			if err != nil {
				t.Fatalf("AnyVersion: %v", err)
			}
			c.Close()
		})
	}
}

func TestErrorsCarryTheirCure(t *testing.T) {
	c := newFake().serve(t, home(t))
	if _, err := c.Guest(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	_, err := c.Guest(t.Context(), "nobody")
	var e *Error
	if !errors.As(err, &e) || e.Code != "not_found" || e.Cause != "there is no guest nobody" || e.Cure != "carrel ls" {
		t.Fatalf("got %#v", err)
	}
	for _, name := range []string{"", "-x", "..", "a/b", "A", "a\x00", "ä", strings.Repeat("a", 32)} {
		if _, err := c.Guest(t.Context(), name); CodeOf(err) != "bad_name" {
			t.Errorf("%q: %v, want bad_name", name, err)
		}
	}
}
