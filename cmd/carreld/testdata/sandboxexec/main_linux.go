//go:build carrelmac

// Command sandboxexec stands in for macOS' sandbox-exec in tests on Linux: it
// reads a profile of a process of Carrel, by its text alone, gives up with
// Landlock and seccomp what that does not allow, and becomes the program.
//
// It is narrower than Seatbelt in no way that matters to what is tested, and wider
// in these: it does not stop anybody from looking at a file's metadata, and what
// one that may dial reaches is not looked at.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/seatbelt"
)

func main() {
	err := errors.New("usage: sandbox-exec -p profile command...")
	if len(os.Args) > 3 && os.Args[1] == "-p" {
		err = become(os.Args[2], os.Args[3:])
	}
	fmt.Fprintln(os.Stderr, "sandbox-exec:", err)
	os.Exit(65)
}

const (
	reads  = landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSReadDir)
	writes = reads | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSMakeSym |
		ll.AccessFSMakeFifo | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir | ll.AccessFSRefer
	ofFiles = landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSExecute)
)

func become(profile string, argv []string) error {
	s, err := seatbelt.ReadProfile(profile)
	if err != nil {
		return err
	}
	var rules []landlock.Rule
	add := func(rights landlock.AccessFSSet, paths ...string) {
		for _, p := range paths {
			fi, err := os.Stat(p)
			if err != nil {
				continue // the system of a Mac
			}
			r := rights
			if !fi.IsDir() {
				r &= ofFiles
			}
			rules = append(rules, landlock.PathAccess(r, p))
		}
	}
	add(reads, s.Read...)
	add(writes, s.Write...)
	add(reads|ll.AccessFSExecute, s.Exec...)
	for _, p := range s.Listen {
		add(reads|ll.AccessFSMakeSock|ll.AccessFSRemoveFile, filepath.Dir(p))
	}
	if err := landlock.V5.BestEffort().RestrictPaths(rules...); err != nil {
		return err
	}
	denied := []string{"fork", "vfork"}
	if !s.Dial {
		denied = append(denied, "connect", "bind", "listen")
	}
	refuse := seccomp.ActionErrno | seccomp.Action(unix.EPERM)
	for i, g := range []seccomp.SyscallGroup{
		{Names: denied, Action: refuse},
		{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)},
		{Action: refuse, NamesWithCondtions: []seccomp.NameWithConditions{{ // threads, and no processes
			Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsNotSet, Value: unix.CLONE_THREAD}},
		}}},
	} {
		f := seccomp.Filter{NoNewPrivs: i == 0, Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{g}}}
		if err := seccomp.LoadFilter(f); err != nil {
			return err
		}
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}
