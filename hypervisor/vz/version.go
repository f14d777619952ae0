package vz

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Version is macOS' version, without its third number.
type Version struct{ Major, Minor int }

// ParseVersion reads what sysctl's kern.osproductversion says: "14.5.1".
func ParseVersion(s string) (Version, error) {
	parts := strings.SplitN(s, ".", 3)
	var n [2]int
	for i := range min(len(parts), 2) {
		var err error
		if n[i], err = strconv.Atoi(parts[i]); err != nil || n[i] < 0 {
			return Version{}, fmt.Errorf("%.40q is no version of macOS", s)
		}
	}
	return Version{n[0], n[1]}, nil
}

// Less says whether v is older than w.
func (v Version) Less(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

func (v Version) String() string {
	if v.Minor == 0 {
		return strconv.Itoa(v.Major)
	}
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}

// The versions of macOS that brought what a guest needs (Apple's documentation of
// the classes, and macOSAvailable in the module's files).
var (
	// A machine can be stopped, and a disk's caching be chosen.
	forMachine = Version{12, 0}
	// A disk can have a serial number, by which the agent knows a volume.
	forSerial = Version{12, 3}
	// A machine has an identifier that can be given to it again.
	forIdentity = Version{13, 0}
	// A machine can be saved, on Apple's own processors.
	forSave = Version{14, 0}
)

// needs refuses a feature that this macOS does not have.
func (h Host) needs(feature string, since Version) error {
	if !h.MacOS.Less(since) {
		return nil
	}
	return &hypervisor.Error{
		Op:  "create guest",
		Err: fmt.Errorf("%s: macOS %v or later is needed, and this is macOS %v", feature, since, h.MacOS), Cure: "update macOS",
	}
}

// Savable says why a guest of this plan cannot be saved on this host, or nil.
func (p Plan) Savable(h Host) error {
	op := func(err error, cure string) error {
		return &hypervisor.Error{Op: "save the guest", Err: err, Cure: cure}
	}
	switch {
	case h.Arch != ARM64:
		return op(errors.New("macOS saves machines on Apple's own processors only"), "stop the guest instead; its disk stays")
	case h.MacOS.Less(forSave):
		return op(fmt.Errorf("macOS %v or later is needed, and this is macOS %v", forSave, h.MacOS), "update macOS, or stop the guest instead; its disk stays")
	case len(p.Shares) > 0:
		return op(fmt.Errorf("share %s is a virtio-fs device, and macOS saves no machine that has one", p.Shares[0].Path), "share it without plain")
	}
	return nil
}
