package main

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/images"
)

// unpackMemory bounds a process that unpacks layers on Windows, in bytes: far above what it promises (runUnpack).
const unpackMemory = 1 << 30

// startUnpack starts a process that unpacks layers, and holds it.
func startUnpack(cmd *exec.Cmd, files ...*os.File) (ended func(), err error) {
	var handed []inherit.Handed
	for _, f := range files {
		handed = append(handed, inherit.Handed(f))
	}
	if err := inherit.Start(cmd, handed...); err != nil {
		return nil, err
	}
	if ended, err = inherit.Hold(cmd, inherit.Limits{Memory: unpackMemory}); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
	return ended, err
}

// runUnpack parses the layers of an image and writes its root. It ends when it is done, or when nobody reads its answers
// any more.
func runUnpack(args []string) error {
	debug.SetMemoryLimit(160 << 20) // what is promised is 200 MB for the process, whatever the image
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	given := images.Given{Request: requestOf(args), Answers: inherit.File(4, "answers"), Root: inherit.File(5, "root"), Spool: inherit.File(6, "spool")}
	return images.Unpack(ctx, given, images.Confinement{
		Enter:   func(dir string, request []byte) error { return enterUnpack(args, dir, request) },
		Confine: confineUnpack,
	})
}
