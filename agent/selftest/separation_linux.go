package selftest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inGroups gives f the top of a cgroup2 file system. Mounting it a second time shows the same one.
func inGroups(f func(top string) error) error {
	return inMemory(func(dir string) error {
		if err := unix.Mount("selftest", dir, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount cgroup2: %w", err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		return f(dir)
	})
}

func controller(name string) func() (string, error) {
	return func() (string, error) {
		return "", inGroups(func(top string) error {
			err := listed(filepath.Join(top, "cgroup.controllers"), name)
			if err != nil {
				err = errors.New("cgroup.controllers does not list " + name)
			}
			return err
		})
	}
}

func groupFile(name string) func() (string, error) {
	return func() (string, error) {
		return "", inGroups(func(top string) error {
			dir, err := os.MkdirTemp(top, "selftest")
			if err != nil {
				return err
			}
			_, err = os.Stat(filepath.Join(dir, name))
			return errors.Join(err, syscall.Rmdir(dir))
		})
	}
}

// kinds are all kinds of namespaces, as /proc/PID/ns calls them, and how to ask for a new one.
var kinds = []struct {
	name string
	flag uintptr
}{
	{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"mnt", unix.CLONE_NEWNS}, {"net", unix.CLONE_NEWNET},
	{"pid", unix.CLONE_NEWPID}, {"time", unix.CLONE_NEWTIME}, {"user", unix.CLONE_NEWUSER}, {"uts", unix.CLONE_NEWUTS},
}

// namespaces starts a program in a new namespace of each kind.
func namespaces() (string, error) {
	var names []string
	for _, k := range kinds {
		if _, err := os.Stat("/proc/self/ns/" + k.name); err != nil {
			return "", err
		}
		attr := &syscall.SysProcAttr{Cloneflags: k.flag}
		if k.flag == unix.CLONE_NEWTIME {
			// clone(2) has another use for the bit: that kind is for unshare(2)
			attr = &syscall.SysProcAttr{Unshareflags: k.flag}
		}
		if err := probe(attr); err != nil {
			return "", fmt.Errorf("%s: %w", k.name, err)
		}
		names = append(names, k.name)
	}
	return strings.Join(names, " "), nil
}

// userNamespaces does as a user's sandbox does: many kinds at once, by somebody who is not root.
func userNamespaces() (string, error) {
	const user = 1000
	return "", onThread(func() error {
		// The system calls themselves change this thread alone, and the child is the thread's.
		for _, id := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, e := unix.RawSyscall(id, user, user, user); e != 0 {
				return e
			}
		}
		// Who changed its user may not be looked into, and the child's maps of users lie in its /proc.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
		return probe(&syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: user, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: user, Size: 1}},
		})
	})
}

// probe starts this program again, as one that only says that it runs.
func probe(attr *syscall.SysProcAttr) error {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"carrel-agent", "probe"}, &syscall.ProcAttr{Dir: "/", Sys: attr})
	if err != nil {
		return err
	}
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			if err == nil && status != 0 {
				err = fmt.Errorf("a program in it ended with status %#x", status)
			}
			return err
		}
	}
}

// onThread runs f on a thread that is thrown away afterwards, with what f made of it. It is never the process's
// first, which is the one that /proc/self shows.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func seccomp() (string, error) {
	for _, action := range []uint32{unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_ERRNO, unix.SECCOMP_RET_USER_NOTIF} {
		if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); e != 0 {
			return "", fmt.Errorf("action %#x: %w", action, e)
		}
	}
	return "", nil
}

// minLandlock is the version that Linux 6.12 has: files, truncation, TCP, ioctl, signals and abstract sockets.
const minLandlock = 6

func landlock() (string, error) {
	v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch {
	case e != 0:
		return "", e
	case v < minLandlock:
		return "", fmt.Errorf("version %d; %d is needed", v, minLandlock)
	}
	return fmt.Sprintf("version %d", v), nil
}
