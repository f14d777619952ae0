package bubblewrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

const (
	program     = "bwrap"
	installCure = "sudo apt-get install bubblewrap, or scripts/setup"
)

// findBwrap returns bwrap's path, absolute and without links.
func findBwrap(configured string) (string, error) {
	name := configured
	if name == "" {
		name = program
	}
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", &hypervisor.Error{Op: "find bubblewrap", Err: err, Cure: installCure}
	}
	fi, err := os.Stat(path)
	if err == nil && fi.Mode()&os.ModeSetuid != 0 {
		// It would run as the host's root, and refuse half of what we ask.
		return "", &hypervisor.Error{Op: "use bubblewrap", Err: fmt.Errorf("%s is set-uid", path), Cure: "sudo chmod u-s " + path}
	}
	return path, err
}

// Check finds out whether a guest could be made here, by making the namespaces
// of one. It returns bwrap's version and what would hold a guest, a sentence
// each.
func (d *Driver) Check(ctx context.Context) (version string, notes []string, err error) {
	bwrap, err := findBwrap(d.opts.Bwrap)
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, bwrap, "--version").Output()
	if err != nil {
		return "", nil, &hypervisor.Error{Op: "use bubblewrap", Err: err, Cure: installCure}
	}
	version = strings.TrimSpace(string(out))
	help, _ := exec.CommandContext(ctx, bwrap, "--help").CombinedOutput() // its status differs by version
	if !strings.Contains(string(help), "--ro-bind-fd") {
		return version, nil, &hypervisor.Error{Op: "use bubblewrap", Err: fmt.Errorf("%s is too old: it has no --ro-bind-fd", version), Cure: "0.10, or Debian's 0.8.0-2+deb12u1, or newer: " + installCure}
	}
	cmd := exec.CommandContext(ctx, bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--ro-bind", "/", "/", "--proc", "/proc", "--", bwrap, "--version")
	cmd.Env = []string{}
	if out, err := cmd.CombinedOutput(); err != nil {
		return version, nil, namespaceError(fmt.Errorf("%w: %.300q", err, out))
	}
	g, err := wall.NewGroups(&wall.Spec{Name: "check", Dir: fmt.Sprint("check", os.Getpid()), CPUs: 1, MemoryMiB: hypervisor.MinMemoryMiB, Processes: maxProcesses}, 0)
	if err != nil {
		return version, nil, &hypervisor.Error{Op: "limit a guest", Err: err}
	}
	notes = append(wallNotes(), g.Notes()...)
	g.Remove()
	return version, notes, nil
}

// wallNotes say what this wall is, as against a machine.
func wallNotes() []string {
	n := []string{"the host's kernel is shared: a fault in it is a way out"}
	if wall.AsRoot() {
		return append(n, "users: a range of the host's, none of them root")
	}
	return append(n, "users: one, your own, without any right; the agent is kept from tasks by a namespace, not by another user")
}

// namespaceError adds to a failure to make namespaces what forbids them here.
func namespaceError(err error) error {
	e := &hypervisor.Error{Op: "make the guest's namespaces", Err: err}
	for _, s := range []struct{ file, forbids, cure string }{
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor forbids user namespaces to ordinary users: give bwrap a profile that allows userns (/etc/apparmor.d/bwrap, see docs/boundaries.md), or: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
		{"kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"},
		{"user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=15000"},
		{"user/max_net_namespaces", "0", "sudo sysctl user.max_net_namespaces=15000"},
		{"user/max_pid_namespaces", "0", "sudo sysctl user.max_pid_namespaces=15000"},
		{"user/max_mnt_namespaces", "0", "sudo sysctl user.max_mnt_namespaces=15000"},
	} {
		b, rerr := os.ReadFile("/proc/sys/" + s.file)
		if rerr != nil || strings.TrimSpace(string(b)) != s.forbids {
			continue
		}
		if strings.HasPrefix(s.file, "kernel/") && os.Geteuid() == 0 {
			continue // it does not hold for root
		}
		e.Cure = s.cure
		return e
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, unix.EACCES) {
		e.Cure = "a container's seccomp profile may forbid them: docker run --security-opt seccomp=unconfined, or run Carrel outside of it"
	}
	return e
}
