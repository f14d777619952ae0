package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Accel is how QEMU runs the guest's code.
type Accel struct {
	// Name is KVM or TCG.
	Name string
	// Reason says why it is not KVM; empty for KVM.
	Reason string
}

// ProbeInput is what a probe needs.
type ProbeInput struct {
	// QEMU is the program's absolute path without links, Shim what confines it.
	QEMU string
	Shim []string
	// Arch is the guest's; empty: AMD64.
	Arch string
	// Kernel and Initrd are booted for the trial. The initrd's init prints
	// ProbeMark and reboots when it finds ProbeWord on its command line.
	Kernel, Initrd string
	// CacheDir keeps the answer.
	CacheDir string
}

// The trial boot's agreement with the agent.
const (
	ProbeWord = "carrel.probe=1"
	ProbeMark = "carrel-probe-ok"
)

// probeTimeout bounds the trial boot. With a KVM that works it takes a few
// tenths of a second.
const probeTimeout = 4 * time.Second

// Probe finds out whether QEMU can boot this kernel with KVM. A /dev/kvm that
// opens proves nothing: there are hosts where it exists and a guest hangs in
// its first instructions. So a guest is booted, once per host boot, QEMU and
// kernel; the answer is remembered in CacheDir.
func Probe(ctx context.Context, in ProbeInput) (Accel, error) {
	_, a, err := probe(ctx, in)
	return a, err
}

// probeRecord is the file in CacheDir.
type probeRecord struct {
	Boot, QEMU, Kernel, Initrd string // what the answer holds for
	Version                    Version
	Accel                      Accel
}

func probe(ctx context.Context, in ProbeInput) (Version, Accel, error) {
	file := probeFile(in.CacheDir)
	now, err := probeKey(in)
	if err != nil {
		return Version{}, Accel{}, &hypervisor.Error{Op: "probe the accelerator", Err: err}
	}
	old, ok := readProbe(file)
	if ok && old.QEMU == now.QEMU {
		now.Version = old.Version
	} else if now.Version, err = version(ctx, in.QEMU); err != nil {
		return Version{}, Accel{}, &hypervisor.Error{Op: "ask qemu for its version", Err: err, Cure: archOf(in.Arch).cure}
	}
	if now.Version.Less(MinVersion) {
		return Version{}, Accel{}, &hypervisor.Error{Op: "use qemu", Err: fmt.Errorf("%s is version %v; %v is the oldest that will do", in.QEMU, now.Version, MinVersion), Cure: archOf(in.Arch).cure}
	}
	if ok && old.Boot == now.Boot && old.QEMU == now.QEMU && old.Kernel == now.Kernel && old.Initrd == now.Initrd {
		return old.Version, old.Accel, nil
	}
	now.Accel, err = accelerator(ctx, in, now.Version)
	if err != nil {
		return Version{}, Accel{}, &hypervisor.Error{Op: "probe the accelerator", Err: err}
	}
	// An answer that cannot be kept costs the next one some seconds, no more.
	writeProbe(file, now)
	return now.Version, now.Accel, nil
}

// accelerator says KVM only after a boot. Its error means that the question
// stayed open: ctx ended.
func accelerator(ctx context.Context, in ProbeInput, v Version) (Accel, error) {
	if archOf(in.Arch).program != archOf(runtime.GOARCH).program {
		return Accel{TCG, "the guest's processor is of another kind than this machine's"}, nil
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Accel{TCG, "there is no /dev/kvm: virtualization is switched off in the firmware, or this is a virtual machine without nested virtualization"}, nil
	case errors.Is(err, os.ErrPermission):
		return Accel{TCG, "/dev/kvm is there and you may not open it: sudo usermod -aG kvm $USER, then log in again"}, nil
	case err != nil:
		return Accel{TCG, fmt.Sprintf("/dev/kvm does not open: %v", err)}, nil
	}
	f.Close()
	bounded, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err = trialBoot(bounded, in, v, KVM)
	if ctx.Err() != nil {
		return Accel{}, context.Cause(ctx)
	}
	if err != nil {
		return Accel{TCG, "/dev/kvm opens, but a guest does not run on it: " + err.Error()}, nil
	}
	return Accel{Name: KVM}, nil
}

// trialBoot boots the kernel with one processor and no devices, and waits for
// the init's mark on the console.
func trialBoot(ctx context.Context, in ProbeInput, v Version, accel string) error {
	cfg := hypervisor.Config{Name: "probe", CPUs: 1, MemoryMiB: 256, Kernel: in.Kernel, Initrd: in.Initrd, Cmdline: []string{ProbeWord}}
	spec, err := specFor(in.QEMU)
	if err != nil {
		return err
	}
	if accel == KVM {
		spec.Devices = append(spec.Devices, "/dev/kvm")
	}
	spec.ReadOnly = append(spec.ReadOnly, in.Kernel, in.Initrd)
	spec.FileBytes = uint64(cfg.MemoryMiB)<<20 + fileSlack
	var ours []*net.UnixConn
	var theirs []*os.File
	defer func() {
		for i := range ours {
			ours[i].Close()
			theirs[i].Close()
		}
	}()
	for _, name := range []string{"qmp", "console"} {
		o, t, err := socketPair(name)
		if err != nil {
			return err
		}
		ours, theirs = append(ours, o), append(theirs, t)
	}
	m := Machine{Version: v, Arch: in.Arch, Accel: accel, QMP: specFD + 1, Console: specFD + 2}
	spec.Args = append([]string{archOf(in.Arch).program}, append(base(cfg, m), "-append", Cmdline(cfg, m))...)
	p, err := startProcess(in.Shim, spec, theirs)
	if err != nil {
		return err
	}
	for _, f := range theirs {
		f.Close() // so that the console ends with QEMU
	}
	stop := context.AfterFunc(ctx, p.kill)
	console, up, err := awaitMark(ours[1])
	late := !stop()
	p.kill()
	<-p.done
	switch {
	case up:
		return nil
	case late:
		return fmt.Errorf("it did not boot within %v", probeTimeout)
	case p.words() != "":
		return errors.New(p.words())
	case err != nil:
		return err
	}
	return fmt.Errorf("it ended without a word; its console: %s", Escape(console, 256))
}

// awaitMark reads the console until ProbeMark or its end, and returns the last
// of it.
func awaitMark(c net.Conn) (last []byte, up bool, err error) {
	buf := make([]byte, 4<<10)
	for {
		n, err := c.Read(buf)
		last = append(last, buf[:n]...)
		if bytes.Contains(last, []byte(ProbeMark)) {
			return last, true, nil
		}
		last = last[max(0, len(last)-256):]
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return last, false, err
		}
	}
}

// probeKey says for what an answer would hold.
func probeKey(in ProbeInput) (probeRecord, error) {
	var r probeRecord
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return r, err
	}
	r.Boot = strings.TrimSpace(string(boot))
	// /dev/kvm is part of it: it may appear, or become ours to open.
	if fi, err := os.Stat("/dev/kvm"); err == nil {
		r.Boot += fmt.Sprintf(" kvm %v %t", fi.Mode(), unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil)
	}
	for _, f := range []struct {
		to   *string
		path string
	}{{&r.QEMU, in.QEMU}, {&r.Kernel, in.Kernel}, {&r.Initrd, in.Initrd}} {
		if *f.to, err = identity(f.path); err != nil {
			return r, err
		}
	}
	return r, nil
}

// identity changes when the file does. It is cheaper than a digest, and a
// wrong answer costs speed, not safety.
func identity(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	st := fi.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%s %d:%d %d %d", path, st.Dev, st.Ino, st.Size, fi.ModTime().UnixNano()), nil
}

// probeFile is where answers are remembered.
func probeFile(cache string) string { return filepath.Join(cache, "accelerator.json") }

// rememberedVersion is what this file of QEMU said to the last probe.
func rememberedVersion(cache, binary string) (Version, bool) {
	id, err := identity(binary)
	if err != nil {
		return Version{}, false
	}
	old, ok := readProbe(probeFile(cache))
	return old.Version, ok && old.QEMU == id
}

func readProbe(file string) (probeRecord, bool) {
	var r probeRecord
	f, err := os.Open(file)
	if err != nil {
		return r, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil || json.Unmarshal(b, &r) != nil {
		return r, false
	}
	return r, r.Accel.Name == KVM || r.Accel.Name == TCG && r.Accel.Reason != ""
}

// writeProbe replaces the file at once, so that two processes cannot mix
// their answers.
func writeProbe(file string, r probeRecord) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".accelerator-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// versionTimeout is how long QEMU may take to say its version. It is a large program
// that does next to nothing then: all of the time goes to a disk and a machine that are
// busy, and a start must not fail of that.
const versionTimeout = time.Minute

// version runs QEMU for its version only.
func version(ctx context.Context, binary string) (Version, error) {
	bounded, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(bounded, binary, "--version")
	cmd.Env = []string{}
	out := tail{limit: 4 << 10}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return Version{}, context.Cause(ctx)
		}
		return Version{}, fmt.Errorf("%s --version: %w: %s", binary, err, Escape(out.bytes(), 200))
	}
	return ParseVersion(string(out.bytes()))
}
