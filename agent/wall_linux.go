package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/machine"
)

// WallOptions say in what kind of process sandbox an agent is.
type WallOptions struct {
	// Boot is the boot stream, Calls the socket that carries all others.
	Boot, Calls *os.File
	// PlainRoot says that /image is the root file system as it shall be;
	// otherwise it is a read-only image, to be laid under the guest's changes.
	PlainRoot bool
	// OneUser says that the sandbox has a single user of the host, whom the
	// agent's namespace calls root. Tasks shall be user 1000, so a second
	// namespace is made beneath, where that is what the one user is called.
	OneUser bool
	// Inner says that this process is the first in that second namespace.
	Inner bool
	// MemoryMiB is the guest's size: what it writes to memory is a part of it.
	MemoryMiB int
}

// Wall is an agent as the first process of a process sandbox: of a pid, mount,
// network, IPC, UTS and user namespace that share the host's kernel. It returns
// at the guest's end.
//
//  1. files that were left open by mistake are closed
//  2. the root file system is made of what the driver mounted, and becomes the
//     only one there is
//  3. where there is one user, the rest happens in a namespace beneath
//  4. serve the host; before it may start anything, nobody may make further
//     user namespaces, nobody that the agent starts has a capability that
//     reaches beyond files and users of the guest, and what tells of the host in
//     /proc is covered
func Wall(ctx context.Context, o WallOptions) error {
	unix.Umask(0o022)
	if err := closeOthers(o.Boot, o.Calls); err != nil {
		return err
	}
	disk := ""
	if o.Inner {
		if _, err := os.Stat(scratchDir + "/upper"); err == nil {
			disk = scratchDir
		}
		// That of the namespace above is what is seen so far.
		if err := machine.MountAll(mnt("proc", "/proc", "proc", quiet, ""), mnt("mqueue", "/dev/mqueue", "mqueue", quiet, "")); err != nil {
			return err
		}
	} else {
		var err error
		if disk, err = wallRoot(o); err != nil {
			return err
		}
		if o.OneUser {
			return descend(o)
		}
	}
	cgroup, err := wallGroups()
	if err != nil {
		return err
	}
	// What takes long runs beside Hello. It is done before the first task, and
	// nothing else is started before that.
	var slow errgroup.Group
	slow.Go(func() error { return errors.Join(maskProc(), loopback()) })
	slow.Go(wallRights)
	// The kernel ignores what would end its first process, but not what that
	// process asked to hear of; Go asks for nearly everything. Heard and not
	// listened to, no signal of a task ends the guest.
	signal.Notify(make(chan os.Signal, 1))
	stream, err := fileConn(o.Boot)
	if err != nil {
		return fmt.Errorf("boot stream: %w", err)
	}
	host, err := newPassed(o.Calls)
	if err != nil {
		_ = stream.Close()
		return fmt.Errorf("socket for streams: %w", err)
	}
	defer host.wait()
	m := mounter{disk: disk, lower: bound, options: plainUser, memoryMiB: o.MemoryMiB, cover: true}
	opts := Options{
		Boot: stream, Listener: host, DialHost: host.dial,
		Cgroup: cgroup, Limitless: cgroup == "", User: defaultUser, Name: setName, Restrict: taskRights, Prepare: slow.Wait,
	}
	opts.shares = newShares(m, opts.DialHost)
	opts.ownNetwork()
	return New(opts).Run(ctx)
}

// closeOthers closes every file but the first three, those that are named and
// the Go runtime's own.
func closeOthers(keep ...*os.File) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("find out what was inherited: %w", err)
	}
	kept := map[int]bool{0: true, 1: true, 2: true}
	for _, f := range keep {
		kept[int(f.Fd())] = true
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || kept[fd] {
			continue
		}
		what, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(what, "anon_inode:[event") {
			continue // the first: the listing's own
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close inherited descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// descend runs the rest of the agent in namespaces of its own and ends as it
// does.
func descend(o WallOptions) error {
	cmd := exec.Command(self, "wall", "--inner", "--boot-fd=3", "--call-fd=4", "--memory="+strconv.Itoa(o.MemoryMiB))
	cmd.Args[0] = "carrel-agent"
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{o.Boot, o.Calls}
	one := []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 0, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UidMappings: one, GidMappings: one,
		Pdeathsig: syscall.SIGKILL,
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, c)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make the namespaces of user 1000: %w", err)
	}
	_ = o.Boot.Close()
	_ = o.Calls.Close()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code := exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
		os.Exit(code)
	}
	return err
}

// masked are files of /proc that tell of the whole host. The rest of it tells
// of the guest's own processes, or what every user of the host may know.
var masked = []string{
	"acpi", "bus", "fs", "irq", "scsi", "tty", "asound",
	"config.gz", "interrupts", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats",
	"modules", "sched_debug", "schedstat", "slabinfo", "softirqs", "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo", "zoneinfo",
	"diskstats", "partitions", "mdstat", "swaps",
	"cmdline", "bootconfig", "buddyinfo", "consoles", "driver", "dynamic_debug", "iomem", "ioports", "locks", "mtrr", "pagetypeinfo",
}

// emptyDir covers folders, and is git's template.
const emptyDir = carrelDir + "/empty"

// maskProc covers them. The kernel's settings need no cover: root of the guest
// is nobody to them, but for those of its own network.
func maskProc() error {
	if err := os.Mkdir(emptyDir, 0o555); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, name := range masked {
		path := "/proc/" + name
		st, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
		from := "/dev/null"
		if st.IsDir() {
			from = emptyDir
		}
		if err := unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
	}
	return nil
}

// fileCaps are what root of the guest keeps for its tasks: rights over files
// and processes whose users are the guest's.
var fileCaps = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID}

// wallRights takes from the guest what the kernel would give to it because it is
// root of a namespace.
func wallRights() error {
	// A limit of this user namespace: what is made in it counts.
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0o644); err != nil {
		return fmt.Errorf("forbid further user namespaces: %w", err)
	}
	if err := shareWatches(); err != nil {
		return fmt.Errorf("leave the host's user watches of files: %w", err)
	}
	if os.Geteuid() != 0 {
		// Tasks are the same user: the agent's memory and files are not theirs.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return fmt.Errorf("hide the agent from tasks: %w", err)
		}
	}
	return nil
}

// watchesPart is which part of its user's watches of files a guest may have:
// what is made in a namespace counts for whoever made the namespace too, who is
// the host's root or its user, and has 128 instances by default (inotify(7)).
const watchesPart = 4

func shareWatches() error {
	for _, name := range []string{"instances", "watches"} {
		b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue // the kernel has none
		}
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/user/max_inotify_"+name, []byte(strconv.Itoa(n/watchesPart)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// taskRights leaves whatever this thread starts fileCaps, and nobody but root even
// these. It is for the one thread that starts everything: told to all, each of
// these forty calls would stop the agent until every thread has made it.
func taskRights() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if os.Geteuid() == 0 && slices.Contains(fileCaps, c) {
			continue
		}
		if _, _, e := syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); e != 0 && e != unix.EINVAL { // EINVAL: newer than this kernel
			return fmt.Errorf("drop capability %d: %w", c, e)
		}
	}
	// What is inheritable comes back to root beyond the bounding set
	// (capabilities(7), "Transformation of capabilities during execve").
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read the agent's capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return fmt.Errorf("clear the inheritable capabilities: %w", e)
	}
	if _, _, e := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0); e != 0 && e != unix.EINVAL { // EINVAL: gVisor has none
		return fmt.Errorf("clear the ambient capabilities: %w", e)
	}
	return nil
}

// wallGroups makes the control group of tasks where the driver gave this guest
// one of version 2, and returns its folder, or "".
func wallGroups() (string, error) {
	if os.Geteuid() != 0 {
		return "", nil
	}
	if err := mnt("cgroup2", groupsDir, "cgroup2", quiet, "").Do(); err != nil {
		return "", nil // the host has no version 2
	}
	for _, d := range []string{agentGroup, tasksGroup, filepath.Join(tasksGroup, copyName)} {
		if err := os.Mkdir(d, 0o755); err != nil {
			// The group is the host's own, not ours to divide.
			return "", unix.Unmount(groupsDir, unix.MNT_DETACH)
		}
	}
	if err := os.WriteFile(agentGroup+"/cgroup.procs", []byte("1"), 0o644); err != nil {
		return "", fmt.Errorf("leave the tasks' control group: %w", err)
	}
	have, err := os.ReadFile(groupsDir + "/cgroup.controllers")
	if err != nil {
		return "", err
	}
	var enable []string
	for c := range strings.FieldsSeq(string(have)) {
		if strings.Contains(machine.Controllers+" ", "+"+c+" ") {
			enable = append(enable, "+"+c)
		}
	}
	for _, d := range []string{groupsDir, tasksGroup} {
		if len(enable) == 0 {
			break
		}
		if err := os.WriteFile(d+"/cgroup.subtree_control", []byte(strings.Join(enable, " ")), 0o644); err != nil {
			return "", fmt.Errorf("divide the guest's control group: %w", err)
		}
	}
	return tasksGroup, nil
}
