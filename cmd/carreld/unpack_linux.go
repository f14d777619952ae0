//go:build !carrelmac

package main

import (
	"fmt"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

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
