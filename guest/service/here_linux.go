package service

import (
	"os"
	"path/filepath"
)

// Here is this system's unit for a daemon at that path.
func Here(daemon string, env []string, _ string) (Unit, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return Unit{}, err
	}
	return Systemd(Options{Daemon: daemon, Folder: filepath.Join(dir, "systemd", "user"), Env: env})
}
