package machine

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/carrel-vm/carrel/agent/uevent"
)

// What the guest's disks are for. A volume's disk is for what its serial number
// says: "volume0", "volume1", ...
const (
	imageDisk    = "image"
	scratchDisk  = "scratch"
	VolumeSerial = "volume" // how that number begins
)

// Where a hypervisor with SCSI disks attaches them, by logical unit number:
// volume n is at firstVolumeLUN + n. Hyper-V gives its disks no serial number of
// ours, and its answer to the question for one is an error that the driver hides
// (storvsc_on_io_completion, drivers/scsi/storvsc_drv.c); the number of the unit
// is the host's to choose.
const (
	imageLUN       = 0
	scratchLUN     = 1
	firstVolumeLUN = 2
)

// diskPatience bounds the wait for disks that are found late.
const diskPatience = 30 * time.Second

// hardware is where the kernel shows disks: /sys, /dev and the messages about them.
type hardware struct {
	sys, dev string
	listen   func() (listener, error)
	patience time.Duration
}

// listener is a *uevent.Socket.
type listener interface {
	Next(end time.Time) error
	Close() error
}

var here = hardware{"/sys", "/dev", func() (listener, error) { return uevent.Open() }, diskPatience}

// disks returns the device of each purpose, and those that are wanted for certain.
//
// A disk's name does not tell its purpose: the kernel gives names in the order in
// which it finds the devices. What is written on a disk tells it even less: guests
// wrote that. Only what the hypervisor says of it counts.
func (h hardware) disks(want ...string) (map[string]string, error) {
	found, err := h.look()
	missing := lacks(found, want)
	if err != nil || missing == "" {
		return found, err
	}
	// Virtio's disks are found before there is a first process. Hyper-V's bus
	// tells of its devices, and their drivers look at them, while that runs
	// (PROBE_PREFER_ASYNCHRONOUS there, and in sd.c).
	if _, err := os.Lstat(h.sys + "/bus/vmbus"); err != nil {
		return nil, errors.New("the guest has no disk for " + missing)
	}
	news, err := h.listen()
	if err != nil {
		return nil, err
	}
	defer news.Close()
	for end := time.Now().Add(h.patience); ; {
		found, err := h.look() // after listen, so that none is missed between
		missing := lacks(found, want)
		if err != nil || missing == "" {
			return found, err
		}
		if err := news.Next(end); err != nil {
			return nil, failed("wait for the disk for "+missing, err)
		}
	}
}

// Disks returns the device of each purpose, and those that are wanted for certain.
func Disks(want ...string) (map[string]string, error) { return here.disks(want...) }

// lacks is the first that is wanted and not there.
func lacks(found map[string]string, want []string) string {
	for _, w := range want {
		if found[w] == "" {
			return w
		}
	}
	return ""
}

// look returns the disks that are there now.
func (h hardware) look() (map[string]string, error) {
	found := map[string]string{}
	names, err := listed(h.sys + "/block")
	if err != nil {
		return nil, err
	}
	for _, kind := range []struct {
		prefix  string
		purpose func(block string) (string, error)
	}{{"vd", virtioPurpose}, {"sd", h.scsiPurpose}} {
		for _, name := range names {
			if !begins(name, kind.prefix) {
				continue
			}
			b := h.sys + "/block/" + name
			purpose, err := kind.purpose(b)
			if err != nil {
				return nil, err
			}
			if purpose == "" {
				continue
			}
			device := h.dev + "/" + base(b)
			if found[purpose] != "" {
				return nil, errors.New("disks " + found[purpose] + " and " + device + " have the same purpose: " + purpose)
			}
			found[purpose] = device
		}
	}
	return found, nil
}

// listed are the names in a folder, in order; none if there is no folder.
func listed(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// virtioPurpose: the image is the disk that the host serves read-only, scratch one
// that it does not, and volumes are told by their serial numbers.
func virtioPurpose(block string) (string, error) {
	ro, err := number(block + "/ro")
	if err != nil {
		return "", err
	}
	if ro == 1 {
		return imageDisk, nil
	}
	b, _ := os.ReadFile(block + "/serial") // a disk may have none
	if serial := string(bytes.TrimRight(b, "\n\x00")); begins(serial, VolumeSerial) {
		return serial, nil
	}
	return scratchDisk, nil
}

// scsiPurpose goes by the logical unit number; empty means that the disk is not
// ready yet: its folder and its node are there before it can be opened
// (device_add_disk, block/genhd.c), and the kernel's message comes after.
func (h hardware) scsiPurpose(block string) (string, error) {
	// "../../../0:0:0:1": host, channel, target, unit.
	to, err := os.Readlink(block + "/device")
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	address := bytes.Split([]byte(base(to)), []byte(":"))
	lun, err := strconv.ParseUint(string(address[len(address)-1]), 10, 16)
	if err != nil || len(address) != 4 {
		return "", errors.New("disk " + base(block) + ": " + strconv.Quote(clip(base(to), 40)) + " is no address of a SCSI disk")
	}
	f, err := os.Open(h.dev + "/" + base(block))
	if err != nil {
		return "", nil
	}
	f.Close()
	switch lun {
	case imageLUN:
		return imageDisk, nil
	case scratchLUN:
		return scratchDisk, nil
	}
	return VolumeSerial + strconv.FormatUint(lun-firstVolumeLUN, 10), nil
}
