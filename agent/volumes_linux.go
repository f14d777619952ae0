package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/machine"
	"github.com/carrel-vm/carrel/guest/wire"
)

// volumesDir is where the disks of volumes are mounted, for the guest's root
// alone: tasks see a folder of each elsewhere.
const volumesDir = carrelDir + "/volumes"

// volumeData is that folder: what mkfs puts beside it is nobody's cache.
const volumeData = "data"

// volumes are the disks that outlive this guest.
type volumes struct {
	// places are the mounts, in the order in which they were made; disks those
	// of them that are whole file systems.
	places, disks []string
}

// mount mounts what Setup says. What is on such a disk was written by another
// guest, perhaps a hostile one: it is this guest's own kernel that reads it.
func (v *volumes) mount(ms []*wire.Mount) error {
	for i, m := range ms {
		if err := checkMount(m); err != nil {
			return err
		}
		if err := v.one(i, m); err != nil {
			return fmt.Errorf("mount volume at %.200q in the guest: %w", m.Path, err)
		}
	}
	return nil
}

func (v *volumes) one(i int, m *wire.Mount) error {
	if !strings.HasPrefix(m.Tag, machine.VolumeSerial) {
		return fmt.Errorf("%.40q is no volume's serial number", m.Tag)
	}
	found, err := machine.Disks(m.Tag)
	if err != nil {
		return err
	}
	disk := found[m.Tag]
	at := filepath.Join(volumesDir, strconv.Itoa(i))
	if err := os.MkdirAll(volumesDir, 0o700); err != nil {
		return err
	}
	if err := mnt(disk, at, "ext4", fromHost, machine.DiskOptions).Do(); err != nil {
		return err
	}
	v.places, v.disks = append(v.places, at), append(v.disks, at)
	data := filepath.Join(at, volumeData)
	switch err := os.Mkdir(data, 0o755); {
	case err == nil:
		if err := os.Lchown(data, taskID, taskID); err != nil {
			return err
		}
	case !errors.Is(err, os.ErrExist):
		return err
	}
	if fi, err := os.Lstat(data); err != nil || !fi.IsDir() {
		return fmt.Errorf("%s on the volume is no folder: remove the volume, or what a guest has put there", volumeData)
	}
	if err := makeLike(m.Path); err != nil {
		return err
	}
	if err := unix.Mount(data, m.Path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	v.places = append(v.places, m.Path)
	return nil
}

// trimTime bounds how much longer a stop takes for what is given back.
const trimTime = 5 * time.Second

// giveBack has the volumes and the disk for the guest's changes, if there is one,
// give back what was deleted on them. The kernel does so by a worker in the
// background, which gives up when a file system is being unmounted
// (ext4_discard_work, fs/ext4/mballoc.c).
func (v *volumes) giveBack(disk string) {
	places := slices.Clone(v.disks)
	if disk != "" {
		places = append(places, disk)
	}
	if len(places) == 0 {
		return
	}
	unix.Sync() // free is what the journal has freed
	end := time.Now().Add(trimTime)
	for _, p := range places {
		machine.Trim(p, end)
	}
}

// unmount writes the volumes out and closes their file systems. One that is still
// in use can only be made read-only.
func (v *volumes) unmount() {
	for i := len(v.places) - 1; i >= 0; i-- {
		if unix.Unmount(v.places[i], unix.UMOUNT_NOFOLLOW) != nil {
			_ = unix.Mount("", v.places[i], "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	}
	v.places, v.disks = nil, nil
}

// taskID is the user and group of tasks that ask for none.
const taskID = 1000

// makeLike makes a folder and what is missing above it. Each belongs to whom
// the folder above belongs to: a user's ~/.cache is not to become root's.
func makeLike(path string) error {
	var st syscall.Stat_t
	if err := syscall.Stat("/", &st); err != nil {
		return err
	}
	at := ""
	for _, name := range strings.Split(strings.Trim(filepath.Clean(path), "/"), "/") {
		at += "/" + name
		uid, gid := int(st.Uid), int(st.Gid)
		err := os.Mkdir(at, 0o755)
		if err == nil {
			err = os.Lchown(at, uid, gid)
		} else if errors.Is(err, os.ErrExist) {
			err = nil
		}
		if err == nil {
			err = syscall.Stat(at, &st)
		}
		if err != nil {
			return err
		}
		if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			return fmt.Errorf("%s is in the way: it is no folder", at)
		}
	}
	return nil
}
