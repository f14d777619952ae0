//go:build !linux && !windows

package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// writeIdentity notes which process keeps the guest, for people to read: on
// this host no process is ever signalled by its number.
func writeIdentity(dir string) error {
	b, err := json.Marshal(map[string]int{"pid": os.Getpid()})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fileKeeper), b, 0o600)
}

// keeperOutlives is how long a keeper that no daemon watches may live after KillKeeper:
// that of a guest which is nobody's ends by itself.
const keeperOutlives = usualAbsence + StopBound

// KillKeeper says whether a keeper that does not answer has ended; it ends none,
// since a process cannot be pinned on this host. Without an error the process that
// wrote keeper.json is gone; os.ErrNotExist means that none is written down, and
// any other error that it may live.
func KillKeeper(dir string) error {
	b, err := readSmall(filepath.Join(dir, fileKeeper))
	if err != nil {
		return err
	}
	var id struct{ PID int }
	if err := json.Unmarshal(b, &id); err != nil || id.PID <= 1 {
		return fmt.Errorf("%w: %s", ErrDamaged, fileKeeper)
	}
	if errors.Is(syscall.Kill(id.PID, 0), syscall.ESRCH) { // the signal 0 is none
		return nil
	}
	return fmt.Errorf("process %d may be it, and on this host no process is ended by its number", id.PID)
}
