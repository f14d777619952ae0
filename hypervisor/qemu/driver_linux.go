package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Options are what a Driver is made from.
type Options struct {
	// Arch is that of the guests, AMD64 or ARM64; empty: AMD64. Guests of another
	// architecture than this machine's are emulated.
	Arch string
	// Binary is QEMU's path; empty: that of the architecture in PATH.
	Binary string
	// Shim is a command that calls ConfineMain: {"/usr/bin/carreld", "confine"}.
	Shim []string
	// CacheDir keeps what the accelerator's trial boot found out.
	CacheDir string
}

// Driver makes guests with QEMU.
type Driver struct {
	opts Options

	began moment // when it was made, for counterKHz

	trial sync.Mutex // held over a trial boot: one at a time
	mu    sync.Mutex
	known map[string]facts // by kernel and initrd
	last  facts            // of the last Create
	argv  []string         // of the last Start
}

// facts are what was found out about this host.
type facts struct {
	binary  string
	version Version
	accel   Accel
}

// New returns a driver. Whether QEMU is there shows at Version, Probe or Create.
func New(o Options) *Driver { return &Driver{opts: o, began: readClocks(), known: map[string]facts{}} }

func (d *Driver) arch() architecture { return archOf(d.opts.Arch) }

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "qemu" }

// Version says which QEMU it would use, for people to read. It runs it, unless
// this very file said so to the last probe.
func (d *Driver) Version(ctx context.Context) (string, error) {
	binary, err := d.findBinary()
	if err != nil {
		return "", &hypervisor.Error{Op: "find qemu", Err: err, Cure: d.arch().cure}
	}
	v, known := rememberedVersion(d.opts.CacheDir, binary)
	if !known {
		v, err = version(ctx, binary)
	}
	if err == nil && v.Less(MinVersion) {
		err = fmt.Errorf("%v is the oldest that will do, %s is %v", MinVersion, binary, v)
	}
	if err != nil {
		return "", &hypervisor.Error{Op: "use qemu", Err: err, Cure: d.arch().cure}
	}
	return fmt.Sprintf("QEMU emulator %v, %s", v, binary), nil
}

// Probe finds out with which accelerator QEMU can boot this kernel. The first
// call on a host takes some seconds at most; the answer is kept.
func (d *Driver) Probe(ctx context.Context, kernel, initrd string) (Accel, error) {
	f, err := d.find(ctx, kernel, initrd)
	return f.accel, err
}

// Accel is the accelerator of the last guest created, the zero Accel before.
func (d *Driver) Accel() Accel {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last.accel
}

// CommandLine is QEMU's own of the last guest started, nil before. Its
// descriptors exist inside that process only.
func (d *Driver) CommandLine() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.argv)
}

func (d *Driver) noteCommandLine(argv []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.argv = slices.Clone(argv)
}

// find finds QEMU and the accelerator.
func (d *Driver) find(ctx context.Context, kernel, initrd string) (facts, error) {
	d.trial.Lock()
	defer d.trial.Unlock()
	key := kernel + "\x00" + initrd
	d.mu.Lock()
	f, ok := d.known[key]
	d.mu.Unlock()
	if ok {
		return f, nil
	}
	binary, err := d.findBinary()
	if err != nil {
		return facts{}, &hypervisor.Error{Op: "find qemu", Err: err, Cure: d.arch().cure}
	}
	f.binary = binary
	f.version, f.accel, err = probe(ctx, ProbeInput{QEMU: binary, Arch: d.opts.Arch, Shim: d.opts.Shim, Kernel: kernel, Initrd: initrd, CacheDir: d.opts.CacheDir})
	if err != nil {
		return facts{}, err
	}
	d.mu.Lock()
	d.known[key] = f
	d.mu.Unlock()
	return f, nil
}

// findBinary returns QEMU's path, absolute and without links, because Landlock
// rules and what is executed must be the same file.
func (d *Driver) findBinary() (string, error) {
	name := d.opts.Binary
	if name == "" {
		name = d.arch().program
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed: %w", name, err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// Create implements hypervisor.Driver.
func (d *Driver) Create(ctx context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (_ hypervisor.VM, err error) {
	if err := CheckConfig(cfg); err != nil {
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	for _, part := range []struct{ what, path string }{
		{"kernel", cfg.Kernel}, {"initrd", cfg.Initrd}, {"root image", cfg.Root}, {"scratch disk", cfg.Scratch},
	} {
		if part.path == "" {
			continue // only scratch may be empty
		}
		if fi, err := os.Stat(part.path); err != nil || !fi.Mode().IsRegular() {
			if err == nil {
				err = fmt.Errorf("%s is not a regular file", part.path)
			}
			return nil, &hypervisor.Error{Op: "open the guest's " + part.what, Err: err, Cure: "carrel image build, or make image"}
		}
	}
	for _, vol := range cfg.Volumes {
		if fi, err := os.Lstat(vol.Path); err != nil || !fi.Mode().IsRegular() {
			if err == nil {
				err = fmt.Errorf("%s is not a regular file", vol.Path)
			}
			return nil, &hypervisor.Error{Op: "open the volume for " + vol.GuestPath, Err: err, Cure: "carrel volume ls shows those that there are"}
		}
	}
	begun := time.Now()
	f, err := d.find(ctx, cfg.Kernel, cfg.Initrd)
	if err != nil {
		return nil, err
	}
	h.Note("qemu and accelerator known", begun)
	spec, err := specFor(f.binary)
	if err != nil {
		return nil, &hypervisor.Error{Op: "confine qemu", Err: err}
	}
	if f.accel.Name == KVM {
		spec.Devices = append(spec.Devices, "/dev/kvm")
	}
	d.mu.Lock()
	d.last = f
	d.mu.Unlock()
	v := newVM(d, cfg, h, f, spec)
	if err := v.create(ctx); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}
