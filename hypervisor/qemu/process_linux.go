package qemu

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one confined program that ends when this process does.
type process struct {
	cmd    *exec.Cmd
	stderr tail
	done   chan struct{} // closed when it has been waited for
	state  *os.ProcessState
}

// stderrMax is how much of the program's last words is kept, in bytes.
const stderrMax = 4 << 10

// startProcess runs spec through the shim; files become descriptors 4 and up,
// in order. files stay the caller's.
//
// The program dies with this process by the parent-death signal, which the
// kernel sends when the thread that forked ends. So one goroutine keeps its
// thread from the fork until the program is gone.
func startProcess(shim []string, spec ConfineSpec, files []*os.File) (*process, error) {
	if len(shim) == 0 {
		return nil, errors.New("no command that confines qemu is configured")
	}
	spec.Parent = os.Getpid()
	for i := range files {
		spec.FDs = append(spec.FDs, specFD+1+i)
	}
	f, err := specFile(spec)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &process{cmd: exec.Command(shim[0], shim[1:]...), stderr: tail{limit: stderrMax}, done: make(chan struct{})}
	p.cmd.Env = []string{} // the shim needs nothing, and QEMU gets the spec's
	p.cmd.Dir = "/"
	p.cmd.Stderr = &p.stderr
	p.cmd.ExtraFiles = append([]*os.File{f}, files...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	p.cmd.WaitDelay = time.Second // for standard error, after the program is gone
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.cmd.Wait() // its error is told by the state
		p.state = p.cmd.ProcessState
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", shim[0], err)
	}
	return p, nil
}

// specFile holds the spec in memory, to be inherited.
func specFile(spec ConfineSpec) (*os.File, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "spec")
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write the spec: %w", err)
	}
	return f, nil
}

// kill ends the program; it may be gone already. os.Process holds a pidfd, so
// the signal can never hit another process.
func (p *process) kill() { p.cmd.Process.Kill() }

// end says how the program ended, as a sentence; empty for status 0. Only
// after done.
func (p *process) end(name string) string {
	ws, ok := p.state.Sys().(syscall.WaitStatus)
	switch {
	case ok && ws.Signaled():
		return fmt.Sprintf("%s was killed by signal %d (%v)", name, ws.Signal(), ws.Signal())
	case p.state.ExitCode() != 0:
		return fmt.Sprintf("%s ended with status %d", name, p.state.ExitCode())
	}
	return ""
}

// words are the program's last ones, escaped, in one line.
func (p *process) words() string {
	return strings.TrimSuffix(Escape(p.stderr.bytes(), stderrMax), `\n`)
}

// socketPair makes a connected pair: ours to use, theirs to inherit.
func socketPair(name string) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}

// libraries are where distributions keep shared libraries and QEMU's firmware
// and modules. QEMU may read them; it cannot execute what it finds there.
var libraries = []string{
	"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/libexec/qemu",
	"/usr/share/qemu", "/usr/local/share/qemu", "/usr/share/seabios", "/usr/share/edk2", "/nix/store", "/gnu/store",
}

// specFor allows a QEMU binary what it needs to load itself.
func specFor(binary string) (ConfineSpec, error) {
	s := ConfineSpec{Path: binary, Exec: []string{binary}, OpenFiles: 1024}
	for _, l := range libraries {
		if fi, err := os.Stat(l); err == nil && fi.IsDir() {
			s.Libraries = append(s.Libraries, l)
		}
	}
	if _, err := os.Stat("/etc/ld.so.cache"); err == nil {
		s.ReadOnly = append(s.ReadOnly, "/etc/ld.so.cache")
	}
	// QEMU tries on it whether the kernel locks files; without it, two guests
	// could write one disk.
	s.ReadWrite = append(s.ReadWrite, os.DevNull)
	loader, err := interpreter(binary)
	if err != nil {
		return s, err
	}
	if loader != "" {
		s.Exec = append(s.Exec, loader)
	}
	return s, nil
}

// interpreter is the dynamic loader that a binary names, or empty.
func interpreter(binary string) (string, error) {
	f, err := elf.Open(binary)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", binary, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz == 0 || p.Filesz > unix.PathMax {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", fmt.Errorf("read %s: %w", binary, err)
		}
		return filepath.Clean(strings.TrimRight(string(b), "\x00")), nil
	}
	return "", nil
}
