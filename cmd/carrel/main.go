// Command carrel runs untrusted work in guests: microVMs that see only the
// folders they were given. It speaks to the user's daemon and starts it on
// demand.
package main

import (
	"errors"
	"os"

	"github.com/carrel-vm/carrel/guest/client"
)

func main() { os.Exit(run(os.Args[1:])) }

// Exit statuses besides a task's own.
const (
	exitNo    = 1   // the answer is no: doctor found something
	exitUsage = 2   // the command line is wrong
	exitOurs  = 125 // Carrel failed, not the task
)

// errNo makes the exit status 1. What it means has been printed.
var errNo = errors.New("no")

// usageError is a command line that cannot be meant.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// signalError says that a signal ended the command before a task could get it.
type signalError struct{ signal client.Signal }

func (s signalError) Error() string { return "ended by " + s.signal.String() }

func exitStatus(err error) int {
	var (
		exit   *client.ExitError
		signal signalError
		usage  usageError
	)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNo):
		return exitNo
	case errors.As(err, &exit):
		return exit.Status
	case errors.As(err, &signal):
		return 128 + int(signal.signal)
	case errors.As(err, &usage):
		return exitUsage
	}
	return exitOurs
}
