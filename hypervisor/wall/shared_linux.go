package wall

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// coreLimit is the one limit with which the kernel starts no handler for a
// process that crashed: with 0 it does, as the host's root and outside of every
// namespace, and hands it the name that the process gave itself (fs/coredump.c,
// core(5)). It is also too small for a file.
const coreLimit = 1

// corePattern says what happens to core files.
const corePattern = "/proc/sys/kernel/core_pattern"

// noCores keeps the host from handling crashes of a process and of what it
// starts. The filter of system calls must keep that from changing the limit. It
// returns a note if this process has no right to set it.
func noCores(pid int) (note string, err error) {
	err = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: coreLimit, Max: coreLimit}, nil)
	if err == nil {
		return "", nil
	}
	if !errors.Is(err, unix.EPERM) {
		return "", fmt.Errorf("limit the guest's core files: %w", err)
	}
	// Our own limit is lower, and not ours to raise.
	b, err := os.ReadFile(corePattern)
	if err != nil {
		return "", fmt.Errorf("limit the guest's core files: %w", err)
	}
	if len(b) > 0 && (b[0] == '|' || b[0] == '@') {
		note = "crashes: this machine's handler (kernel.core_pattern) runs for those in the guest, since the hard limit of core files is 0 here (ulimit -Hc)"
	}
	return note, nil
}

// halveShared halves what this process, and so the user namespace that it
// makes, may have of what the kernel counts for the user who made a namespace
// too: queued signals and timers, and messages. Otherwise a guest could leave
// that user none (kernel/ucount.c).
func halveShared() error {
	for _, resource := range []int{unix.RLIMIT_SIGPENDING, unix.RLIMIT_MSGQUEUE} {
		var l unix.Rlimit
		err := unix.Getrlimit(resource, &l)
		if err == nil && l.Max != unix.RLIM_INFINITY {
			l.Max /= 2
			l.Cur = min(l.Cur, l.Max)
			err = unix.Setrlimit(resource, &l)
		}
		if err != nil {
			return fmt.Errorf("limit what the guest shares with its user: %w", err)
		}
	}
	return nil
}
