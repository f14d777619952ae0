package wall

import (
	"errors"
	"fmt"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Spec is what the wall process is told, as JSON on its descriptor 3.
type Spec struct {
	Name string
	// Dir is the guest's own folder.
	Dir string
	// Program makes the sandbox (bwrap, runsc), Agent runs in it.
	Program, Agent string
	// Platform is how runsc runs the guest's programs; empty for others.
	Platform string
	// Ranged says that the wall process is the host's root, and its guest has
	// a range of the host's users. Otherwise there is one user.
	Ranged bool
	// Image is an EROFS image to mount, Tree a folder that holds one
	// unpacked. Both are empty when the root is the host's system.
	Image, Tree string
	// Changes keeps what the guest changes of its system, over its end. Empty:
	// that is lost with it.
	Changes string
	Shares  []Share
	// Fuse gives the agent /dev/fuse, for shares whose requests it relays.
	Fuse      bool
	CPUs      int
	MemoryMiB int
	// ExtraMiB is what the sandbox itself takes beside the guest's memory.
	ExtraMiB  int
	Processes int
}

// Share is one share and the folder that it must be.
type Share struct {
	Path     string
	Dev, Ino uint64
	Writable bool
	// By says how it gets into the guest.
	By By
}

// By is a way for a share into a guest.
type By string

const (
	// ByBind: the wall mounts the folder itself. No rule of the share server
	// narrows the share.
	ByBind By = ""
	// ByStream: the agent mounts it and relays; the wall has no part in it.
	ByStream By = "stream"
	// ByDevice: the wall mounts FUSE, and the share's server has the device.
	ByDevice By = "device"
)

// Word is what the wall says to the keeper, a line of JSON each.
type Word struct {
	// Started says that the guest's first process runs. The line brings
	// descriptors (pidfd_open(2)) of the processes whose end is the guest's.
	Started bool `json:",omitempty"`
	// Notes say what holds this guest, and what does not, a sentence each.
	Notes []string `json:",omitempty"`
	// Command is the program's own.
	Command []string `json:",omitempty"`
	// Steps are the parts of the start, in order.
	Steps []Step `json:",omitempty"`
	// Op, Err and Cure say why the guest could not be started, or why a
	// command failed.
	Op, Err, Cure string `json:",omitempty"`
	// Device says that the line brings /dev/fuse, as it is mounted for the share
	// with this number, from 1 on.
	Device int `json:",omitempty"`
	// Done answers a command.
	Done bool `json:",omitempty"`
	// Gone is the last line: the guest has ended, for the reason of Cause if
	// that was not in order.
	Gone  bool   `json:",omitempty"`
	Cause string `json:",omitempty"`
}

// Step is one part of a start, in nanoseconds since 1970 UTC.
type Step struct {
	Name       string
	Begin, End int64
}

// Commands of the keeper to the wall, a byte each. The end of the stream is
// commandKill.
const (
	commandPause  = 'p'
	commandResume = 'r'
	commandKill   = 'k'
)

// Descriptors of the wall process. Its standard output and error are the
// guest's console.
const (
	wallSpecFD = 3 + iota
	wallControlFD
	wallBootFD
	wallCallsFD
)

func (w *Word) failure() error {
	if w.Err == "" {
		return nil
	}
	return &hypervisor.Error{Op: w.Op, Err: errText(w.Err), Cure: w.Cure}
}

// errText is an error that another process had.
type errText string

func (e errText) Error() string { return string(e) }

// Pin identifies a folder.
type Pin struct {
	Path     string
	Dev, Ino uint64
}

// Pinned joins the shares of a Config with the folders that were granted. Those
// that are not plain are served by the share server and by nothing else, and get
// into the guest by served.
func Pinned(shares []hypervisor.Share, pins []Pin, served By) (list []Share, err error) {
	if len(shares) > 0 && len(pins) != len(shares) {
		return nil, &hypervisor.Error{Op: "create guest", Err: errors.New("it has shares that were not granted")}
	}
	for i, sh := range shares {
		p := pins[i]
		if p.Path != sh.Path {
			return nil, &hypervisor.Error{Op: "create guest", Err: fmt.Errorf("share %s was not granted", sh.Path)}
		}
		by := served
		if sh.Plain {
			by = ByBind
		}
		list = append(list, Share{Path: sh.Path, Dev: p.Dev, Ino: p.Ino, Writable: !sh.ReadOnly && !sh.Overlay, By: by})
	}
	return list, nil
}
