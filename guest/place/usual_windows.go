package place

import (
	"errors"
	"os"
	"path/filepath"
)

func usual() (Place, error) {
	local := absEnv("LOCALAPPDATA")
	if local == "" {
		return Place{}, errors.New("no local application data: set LOCALAPPDATA, or CARREL_HOME")
	}
	base := filepath.Join(local, "carrel")
	return Place{
		State:  filepath.Join(base, "state"),
		Config: filepath.Join(base, "config"),
		Cache:  filepath.Join(base, "cache"),
		Run:    filepath.Join(base, "run"),
	}, nil
}

func shortTemp() string { return os.TempDir() }
