//go:build !linux && !darwin && !windows

package main

import (
	"os"

	"github.com/carrel-vm/carrel/guest/share"
)

// What confines the processes of Carrel on this host. None of them starts
// without: each calls its own before it reads a byte that a guest wrote, and ends
// with the error.

func confineShare(*share.Root, bool, ...string) error { return errNotHere }

func confineReview([]*share.Root, bool, ...string) error { return errNotHere }

func confineEgress(string) error { return errNotHere }

// streamPair makes a connected pair of sockets, one end of which can be handed to
// another process.
func streamPair() (a, b *os.File, err error) { return nil, nil, errNotHere }
