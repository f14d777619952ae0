package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// emptyWait bounds how long a killed control group may take to become empty:
// a process that waits for a share's answer dies only when it comes.
const emptyWait = 2 * time.Second

// cgroup is the control group (version 2) of one task.
type cgroup struct {
	path string
	dir  *os.File
}

// newCgroup makes a group beneath root and limits it before anything is in it.
func newCgroup(root, name string, l *wire.Limits) (*cgroup, error) {
	c := &cgroup{path: filepath.Join(root, name)}
	if err := os.Mkdir(c.path, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("a task with the id %s runs in this guest already", name)
		}
		return nil, err
	}
	err := c.limit(root, l)
	if err == nil {
		c.dir, err = os.OpenFile(c.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		_ = os.Remove(c.path)
		return nil, err
	}
	return c, nil
}

func (c *cgroup) limit(root string, l *wire.Limits) error {
	// One process of a task that dies for lack of memory ends the whole task:
	// half a build is no build.
	if err := c.set("memory.oom.group", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if n := l.GetMemoryBytes(); n > 0 {
		if err := c.set("memory.max", strconv.FormatUint(n, 10)); err != nil {
			return fmt.Errorf("limit the task's memory: %w", err)
		}
	}
	pids := uint64(l.GetPids())
	if pids == 0 {
		// Three quarters of what all tasks have, so that a fork bomb leaves
		// room for a task that looks after it.
		if b, err := os.ReadFile(filepath.Join(root, "pids.max")); err == nil {
			n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
			pids = n / 4 * 3
		}
	}
	if pids > 0 {
		if err := c.set("pids.max", strconv.FormatUint(pids, 10)); err != nil {
			return fmt.Errorf("limit the task's processes: %w", err)
		}
	}
	if n := l.GetCpuMillis(); n > 0 {
		// In each period of 100 ms; the kernel's least quota is 1 ms.
		if err := c.set("cpu.max", fmt.Sprintf("%d 100000", max(uint64(n)*100, 1000))); err != nil {
			return fmt.Errorf("limit the task's processor time: %w", err)
		}
	}
	return nil
}

func (c *cgroup) set(file, value string) error {
	f, err := os.OpenFile(filepath.Join(c.path, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (c *cgroup) enter(attr *syscall.SysProcAttr) {
	attr.UseCgroupFD, attr.CgroupFD = true, int(c.dir.Fd())
}

// kill ends every process in the group and beneath it.
func (c *cgroup) kill() { _ = c.set("cgroup.kill", "1") }

// oom says whether the kernel killed a process of the group for lack of memory.
func (c *cgroup) oom() bool {
	b, _ := os.ReadFile(filepath.Join(c.path, "memory.events"))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(v) != "0"
		}
	}
	return false
}

// waitEmpty returns when no process is left, or after emptyWait.
func (c *cgroup) waitEmpty() {
	f, err := os.Open(filepath.Join(c.path, "cgroup.events"))
	if err != nil {
		return
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	end := time.Now().Add(emptyWait)
	var buf [256]byte
	for {
		n, _ := f.ReadAt(buf[:], 0)
		if !bytes.Contains(buf[:n], []byte("populated 1")) {
			return
		}
		left := time.Until(end)
		if left <= 0 {
			return
		}
		// The kernel announces a change of cgroup.events as POLLPRI
		// (Documentation/admin-guide/cgroup-v2.rst).
		_ = raw.Control(func(fd uintptr) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, int(left.Milliseconds())+1)
		})
	}
}

// remove kills what is left and removes the group and those that the task made
// beneath it. A group that does not become empty stays.
func (c *cgroup) remove() {
	c.kill()
	c.waitEmpty()
	_ = c.dir.Close()
	var dirs []string
	_ = filepath.WalkDir(c.path, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && len(dirs) < 10000 {
			dirs = append(dirs, p)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = syscall.Rmdir(dirs[i])
	}
}
