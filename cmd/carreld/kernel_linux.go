package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/images"
)

// buildKernel puts a kernel into the cache and prints its path. An image's build finds it there.
func buildKernel(args []string) error {
	f := flag.NewFlagSet("kernel", flag.ExitOnError)
	arch := f.String("arch", runtime.GOARCH, "the guests' architecture: amd64 or arm64")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, err := place.Home()
	if err != nil {
		return err
	}
	shown := int64(-1)
	path, err := images.Open(p.Cache).BuildKernel(ctx, *arch, images.BuildOptions{Progress: func(e images.Event) {
		// Every tenth, and all that is not one of many steps.
		if tenth := e.Done * 10 / max(e.Total, 1); e.Total == 0 || e.Done == e.Total || tenth != shown {
			shown = tenth
			fmt.Fprintf(os.Stderr, "kernel for %s: %d/%d %s\n", *arch, e.Done, e.Total, e.Line)
		}
	}})
	if err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}
