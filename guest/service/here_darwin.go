package service

import (
	"os"
	"path/filepath"
	"strconv"
)

// Here is this system's unit for a daemon at that path, whose state lies in that
// folder.
func Here(daemon string, env []string, state string) (Unit, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return Unit{}, err
	}
	return Launchd(Options{Daemon: daemon, Folder: filepath.Join(home, "Library", "LaunchAgents"), Env: env, Log: filepath.Join(state, "daemon.log"), User: strconv.Itoa(os.Getuid())})
}
