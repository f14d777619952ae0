package seatbelt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Options are what a Driver is made from.
type Options struct {
	// SandboxExec is its path; empty: where macOS has it.
	SandboxExec string
	// Agent is the path of carrel-agent for macOS.
	Agent string
	// Home is the user's home directory.
	Home string
	// Pins say which folder each share of the Config must be, Names what holds
	// within it; see Host.
	Pins  []Pin
	Names []Names
	// Ports are those on which the guest's programs may listen; see Host.
	Ports []uint16
}

// Pin identifies a folder.
type Pin struct {
	Path     string
	Dev, Ino uint64
}

// Driver makes guests with sandbox-exec.
type Driver struct {
	opts Options

	mu   sync.Mutex
	argv []string // of the last Start
}

// New returns a driver. Whether it can make guests shows at Check or Create.
func New(o Options) *Driver {
	if o.SandboxExec == "" {
		o.SandboxExec = "/usr/bin/sandbox-exec"
	}
	return &Driver{opts: o}
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "seatbelt" }

// Check says why no guest can be made, or nil.
func (d *Driver) Check() error {
	op := func(err error, cure string) error { return &hypervisor.Error{Op: "create guest", Err: err, Cure: cure} }
	if fi, err := os.Stat(d.opts.SandboxExec); err != nil || !fi.Mode().IsRegular() {
		return op(fmt.Errorf("the program %q, which macOS brings, is not there: %v", d.opts.SandboxExec, err), "use a macOS that has it")
	}
	if err := runsHere(d.opts.Agent, runtime.GOARCH); err != nil {
		return op(fmt.Errorf("the agent: %w", err), "make build, on this Mac, puts it beside carreld")
	}
	return nil
}

// Notes say what does not hold a guest, a sentence each.
func (d *Driver) Notes() []string {
	return []string{
		"Seatbelt is the host's own kernel, and there is no Linux behind it: no image, no layers over shares, no review",
		"a hidden name in a share can be seen in its folder's list, and not read; folders such as .git can neither be made nor moved in a writable share",
		"not limited: memory, processes, processor time (macOS has no control groups)",
		"a program that does not use the proxy of its environment reaches nothing",
		"a process that has left its parents and their groups may outlive the guest, in its sandbox and without a way out",
	}
}

// CommandLine is sandbox-exec's own of the last guest started, nil before.
func (d *Driver) CommandLine() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.argv)
}

// Create implements hypervisor.Driver. The Config's Root has to be HostRoot;
// kernel and initrd are not used.
func (d *Driver) Create(_ context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (hypervisor.VM, error) {
	op := func(err error) error { return &hypervisor.Error{Op: "create guest", Err: err} }
	if err := d.Check(); err != nil {
		return nil, err
	}
	if err := cfg.CheckWithoutDisks(); err != nil {
		return nil, op(err)
	}
	cfg.Shares = slices.Clone(cfg.Shares)
	host, err := d.host(cfg)
	if err != nil {
		return nil, op(err)
	}
	if _, err := checked(cfg, host); err != nil {
		return nil, op(err)
	}
	if err := d.pinned(cfg); err != nil {
		return nil, op(err)
	}
	profile := filepath.Join(cfg.Dir, "seatbelt.sb")
	v, err := newVM(cfg, h, func(way bool) (command, error) { return d.command(cfg, host, profile, way) }, ofUser, func() error {
		err := os.Remove(profile)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if cfg.Scratch == "" {
			err = errors.Join(err, removeTree(host.Files))
		}
		return err
	})
	if err != nil {
		return nil, op(err)
	}
	return v, nil
}

// host is what this Mac is to the profile, its paths as the kernel has them.
func (d *Driver) host(cfg hypervisor.Config) (Host, error) {
	h := Host{Ports: slices.Clone(d.opts.Ports), Names: d.opts.Names}
	var err error
	if h.Agent, err = KernelPath(d.opts.Agent); err != nil {
		return h, fmt.Errorf("find the agent: %w", err)
	}
	if h.Home, err = KernelPath(d.opts.Home); err != nil {
		return h, fmt.Errorf("find the home directory: %w", err)
	}
	dir, err := KernelPath(cfg.Dir)
	if err != nil {
		return h, fmt.Errorf("find the guest's folder: %w", err)
	}
	h.Files = filesOf(dir, cfg)
	return h, nil
}

// pinned compares the shares with what was granted. A rule is about the path
// that the kernel has for a folder: spelt in another way, with other letters or
// other accents, it would not match.
func (d *Driver) pinned(cfg hypervisor.Config) error {
	if len(cfg.Shares) > 0 && len(d.opts.Pins) != len(cfg.Shares) {
		return errors.New("it has shares that were not granted")
	}
	for i, s := range cfg.Shares {
		p := d.opts.Pins[i]
		if p.Path != s.Path {
			return fmt.Errorf("share %s was not granted", s.Path)
		}
		path, err := KernelPath(s.Path)
		if err != nil {
			return fmt.Errorf("share %s: %w", s.Path, err)
		}
		if path != s.Path {
			return fmt.Errorf("share %s: it is called %s (share it by that name)", s.Path, path)
		}
		var st unix.Stat_t
		if err := unix.Lstat(s.Path, &st); err != nil {
			return fmt.Errorf("share %s: %w", s.Path, err)
		}
		if uint64(st.Dev) != p.Dev || st.Ino != p.Ino {
			return fmt.Errorf("share %s: the folder was replaced by another while the guest started (choose it again)", s.Path)
		}
	}
	return nil
}

// checked writes the profile, and refuses one that does not pass.
func checked(cfg hypervisor.Config, h Host) (string, error) {
	profile, err := Profile(cfg, h)
	if err != nil {
		return "", err
	}
	if err := Lint(profile); err != nil {
		return "", fmt.Errorf("the profile of the sandbox is wrong, and is not used: %w", err)
	}
	return profile, nil
}

// command prepares a start.
func (d *Driver) command(cfg hypervisor.Config, h Host, file string, way bool) (c command, err error) {
	defer func() {
		if err != nil {
			for _, f := range c.files {
				f.Close()
			}
			c.files = nil
		}
	}()
	me, err := user.Current()
	if err != nil {
		return c, fmt.Errorf("find out who runs this: %w", err)
	}
	if c, h.Proxy, err = agentCommand(h.Agent, h.Files, me.Username, way); err != nil {
		return c, err
	}
	c.argv = append([]string{d.opts.SandboxExec, "-f", file}, c.argv...)
	profile, err := checked(cfg, h)
	if err != nil {
		return c, err
	}
	if err := d.pinned(cfg); err != nil {
		return c, err
	}
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		return c, err
	}
	d.mu.Lock()
	d.argv = slices.Clone(c.argv)
	d.mu.Unlock()
	return c, nil
}

// ofUser lists the processes of this user.
func ofUser() ([]process, error) {
	all, err := unix.SysctlKinfoProcSlice("kern.proc.uid", os.Getuid())
	if err != nil {
		return nil, err
	}
	ps := make([]process, 0, len(all))
	for _, p := range all {
		ps = append(ps, process{
			pid: int(p.Proc.P_pid), parent: int(p.Eproc.Ppid), group: int(p.Eproc.Pgid),
			began: p.Proc.P_starttime.Nano(),
		})
	}
	return ps, nil
}

var _ hypervisor.Driver = (*Driver)(nil)
