package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// ConfineSpec says what a confined program may still do. What is not listed
// is gone: every other file, every socket, every other process, every
// capability.
type ConfineSpec struct {
	// Parent is the pid of the process with which the program must die.
	Parent int
	// Path and Args are the program; Args[0] is its name. Its environment is
	// Env and nothing else.
	Path string
	Args []string
	Env  []string
	// FDs are the descriptors above 2 that it keeps.
	FDs []int
	// Exec may be executed, Libraries (folders) and ReadOnly (files) only be
	// read, ReadWrite (files) also be written, Devices also be controlled.
	// An entry that does not exist is an error.
	Exec, Libraries, ReadOnly, ReadWrite, Devices []string
	// OpenFiles and FileBytes are rlimits.
	OpenFiles, FileBytes uint64
}

// specFD is where ConfineMain finds its spec, as JSON.
const specFD = 3

// specMax bounds a spec, in bytes.
const specMax = 1 << 20

// ConfineMain is the whole of the hidden sub-command that Options.Shim names:
// it reads a ConfineSpec from descriptor 3, gives up everything that the spec
// does not list, and becomes the program. It takes no arguments and returns
// only when something failed; then the process must end.
func ConfineMain(args []string) error {
	if len(args) != 0 {
		return fmt.Errorf("confine: %d arguments; it takes none", len(args))
	}
	// Landlock, seccomp, capabilities and the parent-death signal belong to a
	// thread; execve keeps those of the thread that calls it.
	runtime.LockOSThread()
	spec, err := readSpec(os.NewFile(specFD, "spec"))
	if err == nil {
		err = Confine(spec)
	}
	if err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	return fmt.Errorf("confine: execute %s: %w", spec.Path, unix.Exec(spec.Path, spec.Args, spec.Env))
}

func readSpec(f *os.File) (ConfineSpec, error) {
	var s ConfineSpec
	if f == nil {
		return s, errors.New("no spec is open as descriptor 3")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, specMax+1))
	if err != nil {
		return s, fmt.Errorf("read the spec: %w", err)
	}
	if len(b) > specMax {
		return s, fmt.Errorf("the spec is larger than %d bytes", specMax)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, fmt.Errorf("read the spec: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return s, errors.New("the spec has something after its end")
	}
	if s.Path == "" || len(s.Args) == 0 || s.Parent <= 1 {
		return s, errors.New("the spec names no program or no parent")
	}
	return s, nil
}

// Confine gives up, for the calling thread and whatever it executes, all that
// the spec does not list. The caller has locked the thread and executes the
// program next. A protection that the kernel does not offer is an error that
// names it.
func Confine(s ConfineSpec) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"die with the parent", func() error { return dieWith(s.Parent) }},
		{"limit resources", func() error { return limit(s) }},
		{"close descriptors", func() error { return keepOnly(s.FDs) }},
		{"drop capabilities", dropCapabilities},
		{"no_new_privs", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"Landlock", func() error { return restrictFiles(s) }},
		{"seccomp", func() error { return restrictCalls(os.Getpid()) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// dieWith arms the parent-death signal on this thread: the one that os/exec
// armed belongs to the process's first thread, which need not be this one.
func dieWith(parent int) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if p := unix.Getppid(); p != parent {
		return fmt.Errorf("the parent is process %d, not %d: it is gone", p, parent)
	}
	return nil
}

func limit(s ConfineSpec) error {
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_CORE, 0}, // a core file would hold the guest's memory
		{unix.RLIMIT_NOFILE, s.OpenFiles},
		{unix.RLIMIT_FSIZE, s.FileBytes},
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return fmt.Errorf("rlimit %d to %d: %w", l.resource, l.value, err)
		}
	}
	return nil
}

// keepOnly has execve close every descriptor but 0, 1, 2 and fds.
func keepOnly(fds []int) error {
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range (Linux 5.11): %w", err)
	}
	for _, fd := range fds {
		if fd <= 2 {
			return fmt.Errorf("descriptor %d is not one to keep", fd)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// dropCapabilities empties all five sets. With no_new_privs, execve by uid 0
// does not bring them back.
func dropCapabilities() error {
	for c := uintptr(0); ; c++ {
		on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil {
			break // the kernel's last capability is behind us
		}
		if on == 0 {
			continue
		}
		// Who lacks CAP_SETPCAP has no capabilities that could come back.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("drop %d from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the ambient set: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&hdr, &none[0])
}

// restrictFiles puts the process into a Landlock domain. Files are the least
// that it must offer (Linux 5.13); newer kernels add truncation (ABI 3), TCP
// (4), device control (5), and signals and abstract sockets (6).
func restrictFiles(s ConfineSpec) error {
	if abi, err := ll.LandlockGetABIVersion(); err != nil || abi < 1 {
		return fmt.Errorf("the kernel does not offer it: %v (it needs Linux 5.13 and landlock among the kernel's lsm=)", err)
	}
	const (
		read  = ll.AccessFSReadFile
		write = read | ll.AccessFSWriteFile | ll.AccessFSTruncate
	)
	var rules []landlock.Rule
	add := func(access landlock.AccessFSSet, paths []string) {
		if len(paths) > 0 {
			rules = append(rules, landlock.PathAccess(access, paths...))
		}
	}
	add(read|ll.AccessFSExecute, s.Exec)
	add(read|ll.AccessFSReadDir, s.Libraries)
	add(read, s.ReadOnly)
	add(write, s.ReadWrite)
	add(read|ll.AccessFSWriteFile|ll.AccessFSIoctlDev, s.Devices)
	return landlock.V7.BestEffort().Restrict(rules...)
}
