package bubblewrap

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// sharedWithHost takes as much as there is of what the kernel counts for the
// whole host, or for the user who started the guest.
func sharedWithHost(t *testing.T, g *guest, _ folders) {
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	if err != nil {
		t.Fatal(err)
	}
	var instances, watchers, groups int
	if _, err := fmt.Sscan(string(b), &instances); err != nil {
		t.Fatal(err)
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_SIGPENDING, &own); err != nil {
		t.Fatal(err)
	}
	for _, user := range users() {
		got := g.tries(user, "shared")
		// The one limit with which the host starts no handler of crashes.
		if got["core"] != "1 1" {
			t.Errorf("user %q: a limit of core files of %q", user, got["core"])
		}
		if want := fmt.Sprint(own.Max / 2); own.Max != unix.RLIM_INFINITY && got["signals"] != want {
			t.Errorf("user %q: %s queued signals, want %s", user, got["signals"], want)
		}
		if got["limit-self"] != "ok" || got["limit-agent"] != "EPERM" {
			t.Errorf("user %q: limits of itself: %s, of the agent: %s", user, got["limit-self"], got["limit-agent"])
		}
		if got["huge-pages"] != "ENOMEM" || got["lease"] != "EACCES" {
			t.Errorf("user %q: huge pages: %s, a lease: %s", user, got["huge-pages"], got["lease"])
		}
		if _, err := fmt.Sscan(got["watchers"], &watchers); err != nil || watchers == 0 || watchers > instances/4 {
			t.Errorf("user %q: %s instances of inotify, of the host's %d", user, got["watchers"], instances)
		}
		if _, err := fmt.Sscan(got["groups"], &groups); err != nil || groups > 256 {
			t.Errorf("user %q: made %s control groups", user, got["groups"])
		}
	}
	for _, file := range []string{"cmdline", "locks", "iomem", "ioports", "consoles"} {
		if out := g.sh("head -c 100 /proc/" + file); out != "" {
			t.Errorf("/proc/%s says %q", file, out)
		}
	}
}

// socketsOfShares: below a layer, a folder's sockets are out of reach. Those in
// a folder that is shared as it is are not, which docs/boundaries.md says.
func socketsOfShares(t *testing.T, g *guest, f folders) {
	for _, dir := range []string{f.overlay, f.ro} {
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if errors.Is(err, unix.EINVAL) {
			t.Fatalf("the folder's name is too long for a socket: %s", dir)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	for _, user := range users() {
		got := g.tries(user, "connect", "unix", "/shares/ro/s", "unix", "/shares/overlay/s",
			"unix", "/run/carrel/lower/0/s", "unix", "/run/carrel/lower/1/s", "unix", "/run/carrel/lower/2/s", "unix", "/run/carrel/lower/3/s")
		for name, what := range got {
			if name != "unix-/shares/ro/s" && what == "ok" {
				t.Errorf("user %q: %s", user, name)
			}
		}
		if user == "" && got["unix-/shares/ro/s"] != "ok" {
			t.Errorf("control: %v", got)
		}
		out, _ := g.exec(user, "/bin/sh", "-c", "ls /run/carrel/lower/*")
		if bytes.Contains([]byte(out), []byte("file")) {
			t.Errorf("user %q sees a share below its layer: %q", user, out)
		}
	}
}
