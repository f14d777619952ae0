//go:build unix && !darwin

package place

import (
	"fmt"
	"os"
	"path/filepath"
)

// usual follows the XDG base directory specification.
func usual() (Place, error) {
	home, err := os.UserHomeDir()
	if err != nil || !filepath.IsAbs(home) {
		return Place{}, fmt.Errorf("no home directory: set HOME, or CARREL_HOME (%v)", err)
	}
	dir := func(env, rest string) string {
		if d := absEnv(env); d != "" {
			return filepath.Join(d, "carrel")
		}
		return filepath.Join(home, rest, "carrel")
	}
	p := Place{
		State:  dir("XDG_STATE_HOME", ".local/state"),
		Config: dir("XDG_CONFIG_HOME", ".config"),
		Cache:  dir("XDG_CACHE_HOME", ".cache"),
	}
	if d := absEnv("XDG_RUNTIME_DIR"); d != "" {
		p.Run = filepath.Join(d, "carrel")
	} else {
		p.Run = filepath.Join(p.State, "run")
	}
	return p, nil
}
