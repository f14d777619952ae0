package client

import (
	"context"
	"errors"
	"os"
	"os/exec"
)

const (
	exeSuffix = ".exe"
	noFollow  = 0
	nonBlock  = 0
)

func lookPath(name string) (string, error) { return exec.LookPath(name) }

// detach is not written yet: a Windows daemon says that it is ready on a named
// event, and there is no Windows daemon.
func detach(*exec.Cmd, *os.File) error {
	return errors.New("starting the daemon on demand is not possible on Windows yet: run `carreld daemon`")
}

func lockFile(context.Context, string) (func(), error) { return func() {}, nil }
