package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// identity names a process for good: a pid alone may come to mean another.
type identity struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/pid/stat, proc(5): clock ticks since the boot.
	Start uint64 `json:"start"`
	// Boot is the kernel's boot id.
	Boot string `json:"boot"`
}

func identityOf(pid int) (identity, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	// The second field is the name in parentheses, which may hold anything.
	_, rest, ok := strings.Cut(string(b), ") ")
	if i := strings.LastIndex(string(b), ") "); ok {
		rest = string(b)[i+2:]
	}
	f := strings.Fields(rest)
	if len(f) < 20 {
		return identity{}, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return identity{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, err
}

// writeIdentity notes which process keeps the guest. The caller holds the lock.
func writeIdentity(dir string) error {
	id, err := identityOf(os.Getpid())
	if err != nil {
		return err
	}
	b, err := json.Marshal(id)
	if err != nil {
		return err
	}
	p := filepath.Join(dir, fileKeeper)
	if err := os.WriteFile(p+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(p+".new", p)
}

// keeperOutlives is how long a keeper may live after KillKeeper.
const keeperOutlives = 0

// KillKeeper ends a keeper that does not answer. Without an error the process that
// wrote keeper.json has ended; os.ErrNotExist means that none is written down, and
// any other error that it may live. Only that very process is signalled: it is
// pinned first and compared then.
func KillKeeper(dir string) error {
	b, err := readSmall(filepath.Join(dir, fileKeeper))
	if err != nil {
		return err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil || id.PID <= 1 {
		return fmt.Errorf("%w: %s", ErrDamaged, fileKeeper)
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now, err := identityOf(id.PID)
	if errors.Is(err, os.ErrNotExist) || err == nil && now != id {
		return nil // another process has that number now
	}
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	// A pidfd becomes readable when its process has ended.
	for end := time.Now().Add(killBound); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(end).Milliseconds())))
		switch {
		case n > 0:
			return nil
		case err == nil: // it waits for a disk, say
			return fmt.Errorf("process %d was killed and has not ended", id.PID)
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}
