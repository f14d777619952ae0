package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/place"
)

// runKeeper keeps one guest: the request is on descriptor 3, the first word
// goes to descriptor 4, and 5 leads to the guest's egress process. Where there
// is none, on Windows, the guest reaches nothing.
func runKeeper() error {
	in, out, lk := inherit.File(3, "request"), inherit.File(4, "word"), inherit.Take(5, "link")
	var req guest.KeepRequest
	dec := json.NewDecoder(io.LimitReader(in, 4<<20))
	dec.DisallowUnknownFields()
	err := dec.Decode(&req)
	in.Close()
	if err != nil {
		err = fmt.Errorf("read the request: %w (carreld keep is started by the daemon)", err)
		fmt.Fprintln(out, err)
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP)
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("guest", req.Spec.GetName())
	p, err := place.Home()
	if err != nil {
		fmt.Fprintln(out, err)
		return err
	}
	opts, err := keeperOptions(p, req, log)
	if err == nil && lk != nil {
		opts.Link, err = link.New(lk)
	}
	if err == nil {
		opts.Log, opts.Began = log, began
		opts.Wanted = func() error {
			if _, err := io.WriteString(out, " "); err != nil { // before its word, where it says nothing
				return fmt.Errorf("the daemon that started this keeper is gone: %w", err)
			}
			return nil
		}
		opts.Listening = func() {
			fmt.Fprintln(out, "listening")
			out.Close()
		}
		err = guest.Keep(ctx, req, opts)
	}
	if err != nil {
		fmt.Fprintln(out, err) // nobody reads it once we listened
	}
	return err
}
