package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
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

const installCure = "sudo apt-get install runsc, or scripts/setup"

// Platform is how runsc runs a guest's programs and catches their calls.
type Platform struct {
	// Name is "kvm", "systrap" or "ptrace".
	Name string
	// Reason says why not a faster one.
	Reason string
}

// platforms are those that are known, the fastest first. runsc of 2022 has no
// systrap; newer releases have no ptrace.
var platforms = []string{"kvm", "systrap", "ptrace"}

// probeTimeout is how long a sandbox may take to run one small program, on a busy
// machine, too. Where KVM is there and does not work, runsc hangs, so with KVM it is
// kvmTimeout.
const (
	probeTimeout = 15 * time.Second
	kvmTimeout   = 4 * time.Second
)

// probeWord is what the agent prints when it is asked for nothing else.
const probeWord = "carrel-probe-ok"

// findRunsc returns runsc's path, absolute and without links.
func findRunsc(configured string) (string, error) {
	name := configured
	if name == "" {
		name = "runsc"
	}
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", &hypervisor.Error{Op: "find gVisor", Err: err, Cure: installCure}
	}
	return path, nil
}

// Check finds out whether a guest could be made here, by making a small one. It
// returns runsc's version and what would hold a guest, a sentence each.
func (d *Driver) Check(ctx context.Context) (version string, notes []string, err error) {
	runsc, err := findRunsc(d.opts.Runsc)
	if err != nil {
		return "", nil, err
	}
	late, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, err := exec.CommandContext(late, runsc, "--version").Output()
	if err != nil {
		return "", nil, &hypervisor.Error{Op: "use gVisor", Err: err, Cure: installCure}
	}
	version, _, _ = strings.Cut(string(out), "\n")
	p, err := d.probe(ctx, runsc)
	if err != nil {
		return version, nil, err
	}
	notes = wallNotes(p.Name, wall.AsRoot())
	if p.Reason != "" {
		notes = append(notes, p.Reason)
	}
	return version, notes, nil
}

// wallNotes say what this wall is, as against a machine.
func wallNotes(platform string, ranged bool) []string {
	n := []string{"gVisor's kernel runs the guest (" + platform + "); a fault in it leads to a process without files, network and rights"}
	if ranged {
		return append(n, "users: a range of the host's, none of them root")
	}
	return append(n, "users: one, your own; tasks run as the guest's root, which outside has no right that you lack")
}

// probe finds the fastest platform that works, and remembers it as long as
// runsc, the kernel and this user's access to KVM stay the same.
func (d *Driver) probe(ctx context.Context, runsc string) (Platform, error) {
	key, err := probeKey(runsc)
	if err != nil {
		return Platform{}, err
	}
	file := filepath.Join(d.opts.CacheDir, "gvisor.json")
	var known struct {
		Key string
		Platform
	}
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &known) == nil && known.Key == key {
		return known.Platform, nil
	}
	var failures []string
	for _, name := range platforms {
		if name == "kvm" && unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) != nil {
			failures = append(failures, "kvm: /dev/kvm is not there or not ours")
			continue
		}
		err := d.try(ctx, runsc, name)
		if ctx.Err() != nil {
			return Platform{}, context.Cause(ctx)
		}
		if err != nil {
			failures = append(failures, name+": "+err.Error())
			continue
		}
		known.Key, known.Platform = key, Platform{name, strings.Join(failures, "; ")}
		if b, err := json.Marshal(known); err == nil && os.MkdirAll(d.opts.CacheDir, 0o700) == nil {
			_ = os.WriteFile(file, b, 0o600) // only time is lost without it
		}
		return known.Platform, nil
	}
	return Platform{}, &hypervisor.Error{
		Op: "use gVisor", Err: errors.New("no platform works here: " + strings.Join(failures, "; ")),
		Cure: "runsc needs user namespaces, ptrace and mounts, which a container may lack: run Carrel outside of it, or use --boundary vm or process",
	}
}

func probeKey(runsc string) (string, error) {
	var st unix.Stat_t
	var u unix.Utsname
	if err := errors.Join(unix.Stat(runsc, &st), unix.Uname(&u)); err != nil {
		return "", &hypervisor.Error{Op: "use gVisor", Err: err, Cure: installCure}
	}
	kvm := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil
	return fmt.Sprintf("%s %d %d %s %d %t", runsc, st.Size, st.Mtim.Nano(), unix.ByteSliceToString(u.Release[:]), os.Geteuid(), kvm), nil
}

// try runs the agent in a sandbox of its own, where it says one word.
func (d *Driver) try(ctx context.Context, runsc, platform string) error {
	dir, err := os.MkdirTemp("", "carrel-gvisor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "root")
	at := filepath.Join(root, insideAgent)
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, nil, 0o644)); err != nil {
		return err
	}
	c, err := Config(Plan{Name: "probe", Root: root, Agent: d.opts.Agent, MemoryMiB: hypervisor.MinMemoryMiB})
	if err != nil {
		return err
	}
	// The one difference to a guest: what it is asked to do.
	c = bytes.Replace(c, []byte(`"sandbox"`), []byte(`"probe"`), 1)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), c, 0o600); err != nil {
		return err
	}
	limit := probeTimeout
	if platform == "kvm" {
		limit = kvmTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	log := filepath.Join(dir, "log")
	// Of a name of its own: another daemon may look at the same time.
	args := append(Flags(platform, filepath.Join(dir, "state"), log, !wall.AsRoot()), "run", "--bundle", dir, sandboxID(dir))
	cmd := exec.CommandContext(ctx, runsc, args...)
	cmd.Env, cmd.Dir = []string{"TMPDIR=" + dir}, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A sandbox that hangs has processes of its own, which end with runsc but
	// may hold the output open for a moment.
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("it runs no program within %v", limit)
	case err != nil:
		return fmt.Errorf("%w: %s", err, lastWords(out))
	case !bytes.Contains(out, []byte(probeWord)):
		return fmt.Errorf("its program said %s", lastWords(out))
	}
	return nil
}

func lastWords(b []byte) string {
	var t wall.Tail
	t.Add(b)
	return t.Text()
}
