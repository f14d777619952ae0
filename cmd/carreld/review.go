package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/review"
	"github.com/carrel-vm/carrel/guest/share"
)

// runReview is a review process: its request is on descriptor 3, its answers go
// to 4, the last of which says how it ended. It ends when it is done, or when
// nobody reads its answers any more.
func runReview(args []string) error {
	// It does one thing and ends: most of what it makes is never collected.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(256 << 20)
	in, out := requestOf(args), inherit.File(4, "answers")
	answers := review.NewAnswers(out)
	err := func() error {
		req, err := review.ReadRequest(in)
		in.Close()
		if err != nil {
			return err
		}
		answers.Together = req.Diff != nil
		if err := enterReview(args, req); err != nil {
			return err
		}
		return serveReview(req, answers)
	}()
	return errors.Join(answers.End(err), out.Close())
}

// serveReview carries out a request:
//
//  1. the folders are pinned, and are those that were granted
//  2. the process confines itself to them and to their stores; a failure ends it
//     before a byte that a guest wrote is read
//  3. the request is served, by names that lead nowhere else now
func serveReview(req review.Request, answers *review.Answers) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The daemon closes its end to end us: a write says so then, and no signal
	// may come before we have stopped at a good place.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	roots, stores, err := reviewFolders(req)
	if err != nil {
		return err
	}
	if err := confineReview(roots, readsOnly(req), stores...); err != nil {
		return notConfined(err)
	}
	return review.Serve(ctx, req, answers.Emit)
}

// readsOnly says whether a request leaves the folders themselves as they are.
func readsOnly(req review.Request) bool {
	return req.Diff != nil || req.Summary != nil || req.Discard != nil || req.Apply.GetDryRun()
}

func notConfined(err error) error {
	return &review.Error{Code: "not_confined", Cause: fmt.Sprintf("the review process could not give up what it does not need: %v", err), Cure: "see carrel doctor"}
}

// reviewFolders pins the folders of the shares that have a store.
func reviewFolders(req review.Request) (roots []*share.Root, stores []string, err error) {
	for _, ref := range req.Shares {
		is, err := os.Lstat(ref.Store)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if !is.IsDir() {
			return nil, nil, fmt.Errorf("the store %s is no folder", ref.Store)
		}
		root, err := share.OpenRoot(ref.Path)
		if err != nil {
			return nil, nil, &review.Error{Code: "share_gone", Cause: err.Error(), Cure: "bring the folder back under its name"}
		}
		if dev, ino := root.ID(); dev != ref.Dev || ino != ref.Ino {
			return nil, nil, &review.Error{Code: "share_replaced", Cause: ref.Path + " is another folder than the one that was shared", Cure: "bring the folder back under its name"}
		}
		roots, stores = append(roots, root), append(stores, ref.Store)
	}
	return roots, stores, nil
}
