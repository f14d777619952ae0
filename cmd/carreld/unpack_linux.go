package main

import (
	"context"
	"fmt"
	"os/exec"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// unpackCommand starts a process that unpacks layers; it is killed when ctx ends.
func unpackCommand(self string) func(ctx context.Context) *exec.Cmd {
	return func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, self, "unpack")
		cmd.Env = []string{"LANG=C.UTF-8"} // nothing of the user's: credentials may be in it
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C at the daemon's terminal is the daemon's to judge
		return cmd
	}
}

// maxUnpacked bounds a file that the process writes: the limit of contents, and as much again for a root of which
// half is metadata.
const maxUnpacked = 64 << 30

// confineUnpack leaves a process that unpacks layers the folder of blobs, to read, and the descriptors that it
// has: no other file, no socket, no new process, no capability.
func confineUnpack(dir string) error {
	abi, err := llsyscall.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return fmt.Errorf("this kernel has no Landlock: %v (Linux 5.13 or newer, with landlock in its lsm= list)", err)
	}
	if err := landlock.V5.BestEffort().RestrictPaths(landlock.RODirs(dir)); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if abi >= 4 {
		if err := landlock.V5.BestEffort().RestrictNet(); err != nil {
			return fmt.Errorf("landlock: %w", err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: maxUnpacked, Max: maxUnpacked}); err != nil {
		return fmt.Errorf("bound the size of a file: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	err = seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno | seccomp.Action(unix.EPERM), Names: append([]string{"socketpair"}, keeperDenied...)}},
		},
	})
	if err == nil {
		err = restrictProcesses()
	}
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}
