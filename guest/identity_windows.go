package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// identity names a process for good: a number alone may come to mean another.
type identity struct {
	PID uint32 `json:"pid"`
	// Created is when it was, in units of 100 ns since 1601.
	Created int64 `json:"created"`
}

// created says when a process was made.
func created(h windows.Handle) (int64, error) {
	var made, ended, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(h, &made, &ended, &kernel, &user); err != nil {
		return 0, err
	}
	return int64(made.HighDateTime)<<32 | int64(made.LowDateTime), nil
}

// writeIdentity notes which process keeps the guest. The caller holds the lock.
func writeIdentity(dir string) error {
	at, err := created(windows.CurrentProcess())
	if err != nil {
		return err
	}
	b, err := json.Marshal(identity{PID: windows.GetCurrentProcessId(), Created: at})
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
// any other error that it may live. Only that very process is ended: it is opened
// first, so that its number stays its own, and compared then.
func KillKeeper(dir string) error {
	b, err := readSmall(filepath.Join(dir, fileKeeper))
	if err != nil {
		return err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil || id.PID == 0 || id.Created == 0 {
		return fmt.Errorf("%w: %s", ErrDamaged, fileKeeper)
	}
	h, err := windows.OpenProcess(windows.PROCESS_TERMINATE|windows.PROCESS_QUERY_LIMITED_INFORMATION|windows.SYNCHRONIZE, false, id.PID)
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		return nil // no process has that number
	}
	if err != nil {
		return err
	}
	defer windows.CloseHandle(h)
	if at, err := created(h); err != nil || at != id.Created {
		return err
	}
	if err := windows.TerminateProcess(h, 137); err != nil {
		// One that has just ended cannot be ended.
		if ended, werr := windows.WaitForSingleObject(h, 0); werr != nil || ended != windows.WAIT_OBJECT_0 {
			return err
		}
	}
	ended, err := windows.WaitForSingleObject(h, uint32(killBound.Milliseconds()))
	if err == nil && ended != windows.WAIT_OBJECT_0 {
		err = fmt.Errorf("process %d was ended and is still there", id.PID)
	}
	return err
}
