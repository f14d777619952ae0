package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/carrel-vm/carrel/images"
)

// runUnpack parses the layers of an image and writes its root. It ends when it is done, or when nobody reads its answers
// any more.
func runUnpack(args []string) error {
	debug.SetMemoryLimit(160 << 20) // what is promised is 200 MB for the process, whatever the image
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	return images.Unpack(ctx, requestOf(args), images.Confinement{
		Enter:   func(dir string, request []byte) error { return enterUnpack(args, dir, request) },
		Confine: confineUnpack,
	})
}
