//go:build !linux && !windows

package guest

import (
	"encoding/json"
	"os"
	"path/filepath"
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

// killBound is how long a keeper that no daemon watches may live after KillKeeper:
// that of a guest which is nobody's ends by itself.
const killBound = usualAbsence + StopBound

// KillKeeper does nothing on a host where a process cannot be pinned.
func KillKeeper(string) error { return nil }
