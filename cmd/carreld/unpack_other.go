//go:build !linux && !darwin && !windows

package main

import (
	"context"
	"os/exec"
)

// unpackCommand is nil: such a process confines itself, and here it could not. Layers are parsed in the daemon.
func unpackCommand(string) func(context.Context) *exec.Cmd { return nil }

func confineUnpack(string) error { return errNotHere }
