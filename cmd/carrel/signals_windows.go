package main

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/client"
)

var forwarded = map[os.Signal]client.Signal{os.Interrupt: client.SIGINT}

// onResize does nothing: a Windows console tells its size as an input record,
// which the Go library does not read.
func onResize(func()) func() { return func() {} }

// Windows ends nobody for a pipe that is not read.
func catchPipe() func() { return func() {} }

func isPipe(err error) bool {
	return errors.Is(err, windows.ERROR_BROKEN_PIPE) || errors.Is(err, windows.ERROR_NO_DATA)
}
