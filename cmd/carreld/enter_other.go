//go:build !darwin && !carrelmac

package main

import (
	"fmt"
	"os"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/review"
	"github.com/carrel-vm/carrel/guest/share/control"
)

// On this host a process confines itself where it stands, and has no sandbox to
// enter before (enter_seatbelt.go).

// inherited closes what this process was given beside its own descriptors.
func inherited(args []string, first int) error {
	if len(args) > 0 {
		return fmt.Errorf("it takes no arguments, and got %q", args)
	}
	return closeInherited(first)
}

// requestOf is what a process of a review, of a way out or of layers reads its request from.
func requestOf([]string) *os.File { return inherit.File(3, "request") }

// toldShare takes the control socket of a share process and reads what it is to
// serve.
func toldShare([]string) (*control.Conn, control.Spec, error) {
	c, err := control.New(inherit.Take(3, "control"))
	if err != nil {
		return nil, control.Spec{}, err
	}
	spec, err := c.Told()
	if err != nil {
		c.Close()
	}
	return c, spec, err
}

func enterReview([]string, review.Request) error { return nil }

func enterEgress([]string, guest.EdgeRequest) error { return nil }

func enterUnpack([]string, string, []byte) error { return nil }
