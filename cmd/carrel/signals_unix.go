//go:build unix

package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/carrel-vm/carrel/guest/client"
)

// forwarded are the signals that a task gets in our place, by Linux's numbers.
var forwarded = map[os.Signal]client.Signal{
	syscall.SIGINT:  client.SIGINT,
	syscall.SIGTERM: client.SIGTERM,
	syscall.SIGHUP:  client.SIGHUP,
	syscall.SIGQUIT: client.SIGQUIT,
}

// catchPipe makes a write to a pipe that nobody reads an error, rather than our
// end, until the function that it returns is called.
func catchPipe() func() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGPIPE)
	return func() { signal.Stop(ch) }
}

// isPipe says whether err is of such a write.
func isPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }

// onResize calls f whenever the terminal's size changes, until the function
// that it returns is called.
func onResize(f func()) func() {
	ch := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(ch, syscall.SIGWINCH)
	go func() {
		defer close(done)
		for range ch {
			f()
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
		<-done
	}
}
