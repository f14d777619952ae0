package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon"
	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/images"
)

// taskUser is whom a guest's tasks run as, and who owns what is in its shares.
const taskUser = 1000

// release is set when a release is linked.
var release = "0.1.0-dev"

func version() *api.VersionResponse {
	v := &api.VersionResponse{Version: release, Go: runtime.Version(), Api: "carrel.v1"}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}

// runDaemon serves until it is told to stop. Its first word on --ready-fd says
// whether it serves: "ok", "already", or why not.
func runDaemon(args []string) error {
	fs := flag.NewFlagSet("carreld daemon", flag.ExitOnError)
	readyFD := fs.Int("ready-fd", -1, "descriptor that is told when the daemon serves")
	fs.Parse(args)
	if *readyFD != -1 && *readyFD != 3 {
		return errors.New("--ready-fd must be 3")
	}
	if err := closeInherited(max(3, *readyFD+1)); err != nil {
		return err
	}
	say := func(string) {}
	if *readyFD > 2 {
		f := inherit.File(*readyFD, "ready")
		say = func(word string) {
			fmt.Fprintln(f, word)
			f.Close()
		}
	}
	err := serve(func() { say("ok") })
	switch {
	case errors.Is(err, daemon.ErrRunning):
		say("already")
	case err != nil:
		say("error: " + err.Error())
	}
	return err
}

func serve(ready func()) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP) // the terminal that started it may go
	o, err := daemonOptions()
	if err != nil {
		return err
	}
	return daemon.Run(ctx, o, func() {
		ready()
		if err := notify(); err != nil {
			o.Log.Warn("notify", "error", err)
		}
	})
}

func daemonOptions() (o daemon.Options, err error) {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	p, err := place.Home()
	if err != nil {
		return o, err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return o, fmt.Errorf("find the home directory, which is never shared: %w (set HOME)", err)
	}
	self, err := os.Executable()
	if err != nil {
		return o, err
	}
	store := images.Open(p.Cache).WithBundles(filepath.Join(p.Config, "trusted-keys"), filepath.Join(p.State, "bundles"))
	if unpack := unpackCommand(self); unpack != nil {
		store = store.WithUnpacker(images.Unpacker{Command: unpack, Start: startUnpack})
	}
	return daemon.Options{
		Place: p, Rules: policy.Default(home, p.State, p.Config, p.Cache, p.Run),
		Images: store, Parts: imageParts(store),
		Keeper: []string{keeperProgram(self), "keep"}, Edge: egressCommand(self), Review: reviewCommand(self), Share: shareCommand(self), ShareOwner: taskUser, Link: link.Pair, Agent: filepath.Join(filepath.Dir(self), "carrel-agent"),
		Driver: driverName, Doctor: diagnose(p, store), Version: version(), Log: log, Memory: hostMemory,
	}, nil
}
