package guest

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
)

// A volume's folder, <state>/volumes/<name>, mode 0700:
//
//	disk.img    an ext4 that only guests read; sparse (Windows: disk.vhdx)
//	lock        held by the keeper whose guest has it
//	holder      that guest's name; it means something while the lock is held
const fileHolder = "holder"

// VolumeBusyError says who has a volume.
type VolumeBusyError struct {
	Volume string
	// Holder is a guest's name, or empty if it is not known.
	Holder string
}

func (e *VolumeBusyError) Error() string {
	if !hypervisor.ValidName(e.Holder) {
		return fmt.Sprintf("volume %s is in use (carrel volume ls shows by which guest)", e.Volume)
	}
	return fmt.Sprintf("volume %s is in use by guest %s (carrel stop %s, or choose another volume: one guest at a time writes to it)", e.Volume, e.Holder, e.Holder)
}

// LockVolume takes a volume's folder for a guest, or for nobody's if holder is
// empty, until unlock is called or this process ends. The error is a
// *VolumeBusyError if somebody has it.
func LockVolume(dir, holder string) (unlock func(), err error) {
	name := filepath.Base(dir)
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
		return nil, fmt.Errorf("volume %s is not there (carrel volume create %s)", name, name)
	}
	unlock, ok, err := Lock(dir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("take volume %s: %w", name, err)
	case !ok:
		b, _ := readSmall(filepath.Join(dir, fileHolder))
		return nil, &VolumeBusyError{Volume: name, Holder: string(b)}
	}
	if holder != "" {
		// For people to read: what counts is the lock.
		_ = policy.WriteFile(filepath.Join(dir, fileHolder), []byte(holder))
	}
	return unlock, nil
}

// lockVolumes takes all volumes of a guest, or none.
func lockVolumes(parts policy.Parts, grant *policy.Grant) (unlock func(), err error) {
	var all []func()
	unlock = func() {
		for _, u := range all {
			u()
		}
	}
	for _, v := range grant.Spec().Volumes {
		u, err := LockVolume(filepath.Dir(policy.VolumeDisk(parts.Volumes, v.Name)), grant.Spec().Name)
		if err != nil {
			unlock()
			return nil, err
		}
		all = append(all, u)
	}
	return unlock, nil
}

// wireVolumes says to the agent which disk is mounted where.
func wireVolumes(c hypervisor.Config) (ms []*wire.Mount) {
	for _, v := range c.Volumes {
		ms = append(ms, &wire.Mount{Tag: v.Serial, Path: v.GuestPath})
	}
	return ms
}
