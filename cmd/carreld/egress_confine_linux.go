//go:build !carrelmac

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Limits of an egress process.
const (
	// egressFiles: two sockets for each of 1,024 connections, those of their
	// look-ups, ports, and some.
	egressFiles = 8192
	// egressFileSize bounds a file that it writes, which only its audit log is.
	egressFileSize = 64 << 20
)

// resolverPaths are what the resolver reads, beside /etc, where /etc/resolv.conf
// usually points to: a folder, since the file is replaced whenever the host's
// network changes.
var resolverPaths = []string{"/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman"}

// rootPaths are where certificates lie that /etc/ssl/certs points to.
var rootPaths = []string{"/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki", "/usr/share/ssl"}

// confineEgress leaves an egress process its audit folder, what the host's
// resolver and roots need, and sockets of the internet: no new process, no file
// of the user's, no socket of another program on this host, no capability. It
// holds for all threads and cannot be undone.
func confineEgress(audit string) error {
	if err := boundSelf(); err != nil {
		return err
	}
	abi, err := llsyscall.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return fmt.Errorf("this kernel has no Landlock: %v (Linux 5.13 or newer, with landlock in its lsm= list)", err)
	}
	dirs, files := readable()
	if err := landlock.V5.BestEffort().RestrictPaths(landlock.RWDirs(audit), landlock.RODirs(dirs...).IgnoreIfMissing(), landlock.ROFiles(files...).IgnoreIfMissing()); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if abi >= 6 { // signals to others, and their abstract sockets
		if err := landlock.V6.BestEffort().RestrictScoped(); err != nil {
			return fmt.Errorf("landlock: %w", err)
		}
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	// It binds the host's ports that lead into the guest, and makes pairs for
	// them; restrictSockets says of which kinds.
	names := slices.DeleteFunc(slices.Clone(keeperDenied), func(n string) bool {
		return slices.Contains([]string{"socket", "socketpair", "connect", "bind", "listen"}, n)
	})
	err = seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno | seccomp.Action(unix.EPERM), Names: append(names, "prlimit64", "setrlimit", "kill", "pidfd_send_signal")}},
		},
	})
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	if err := errors.Join(restrictSockets(), restrictProcesses()); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// boundSelf sets limits, and keeps secrets out of core dumps and away from a
// debugger.
func boundSelf() error {
	for res, n := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: egressFiles, unix.RLIMIT_FSIZE: egressFileSize} {
		var old unix.Rlimit
		if err := unix.Getrlimit(res, &old); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
		n = min(n, old.Max)
		if err := unix.Setrlimit(res, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}

// readable are folders and files that the resolver and the verification of
// servers read. The whole of /etc, since what they read there is replaced, not
// rewritten, and a rule holds for the very file that was there.
func readable() (dirs, files []string) {
	dirs = append([]string{"/etc"}, resolverPaths...)
	dirs = append(dirs, rootPaths...)
	if p, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil && !strings.HasPrefix(p, "/etc/") {
		files = append(files, p)
	}
	for _, d := range filepath.SplitList(os.Getenv("SSL_CERT_DIR")) {
		if filepath.IsAbs(d) {
			dirs = append(dirs, d)
		}
	}
	if f := os.Getenv("SSL_CERT_FILE"); filepath.IsAbs(f) {
		files = append(files, f)
	}
	// The kernel's numbers that package net looks at.
	return dirs, append(files, "/proc/sys/net/core/somaxconn", "/proc/sys/net/ipv4/ip_local_port_range")
}
