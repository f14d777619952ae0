package main

import (
	"fmt"
	"os"
	"os/exec"
)

// becomeDaemon waits for the daemon: Windows cannot replace a process.
func becomeDaemon(path string) error {
	cmd := exec.Command(path, "daemon")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}
