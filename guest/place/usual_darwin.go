package place

import (
	"fmt"
	"os"
	"path/filepath"
)

func usual() (Place, error) {
	home, err := os.UserHomeDir()
	if err != nil || !filepath.IsAbs(home) {
		return Place{}, fmt.Errorf("no home directory: set HOME, or CARREL_HOME (%v)", err)
	}
	support := filepath.Join(home, "Library", "Application Support", "carrel")
	return Place{
		State:  filepath.Join(support, "state"),
		Config: filepath.Join(support, "config"),
		Cache:  filepath.Join(home, "Library", "Caches", "carrel"),
		Run:    filepath.Join(support, "run"),
	}, nil
}
