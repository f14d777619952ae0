package daemon

import (
	"errors"
	"path/filepath"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
)

// noRoomCure is what helps where the host's disk is nearly full.
const noRoomCure = "make room: carrel prune shows what of ours nobody needs, carrel ls --size what guests take; host.free in policy.yaml says how much has to stay free"

// room refuses what would write to dir's disk while too little of it is free.
// What was begun goes on, and meets the disk's own end: a guest gets an I/O
// error from its disk.
func (d *Daemon) room(what, dir string, rules policy.Rules) error {
	_, _, err := place.Room(dir, floorOf(rules))
	if full := (*place.NoRoomError)(nil); errors.As(err, &full) {
		return api.NewError(connect.CodeResourceExhausted, "host_full", what+": "+full.Error(), noRoomCure)
	}
	if err != nil { // a disk that cannot be asked may still be written
		d.log.Warn("room", "error", err)
	}
	return nil
}

// roomByFile is room by what the policy file says now; one that cannot be read
// says nothing about room, and is refused where it counts.
func (d *Daemon) roomByFile(what, dir string) error { return d.room(what, dir, d.rulesNow()) }

func (d *Daemon) rulesNow() policy.Rules {
	file, err := policy.Load(filepath.Join(d.opts.Place.Config, policyFile))
	if err != nil {
		return d.opts.Rules
	}
	return file.Apply(d.opts.Rules)
}

func floorOf(rules policy.Rules) *int64 {
	if rules.MinFreeMiB == nil {
		return nil
	}
	n := int64(*rules.MinFreeMiB) << 20
	return &n
}
