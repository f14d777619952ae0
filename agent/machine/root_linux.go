package machine

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// early mounts what everything else reads.
func early() error {
	return MountAll(
		Mount{"dev", "/dev", "devtmpfs", syscall.MS_NOSUID | syscall.MS_NOEXEC, "mode=0755"},
		Mount{"proc", "/proc", "proc", Quiet, ""},
		Mount{"sys", "/sys", "sysfs", Quiet, ""},
		Mount{"cgroup2", GroupsDir, "cgroup2", Quiet, ""},
	)
}

// root mounts the image with a layer for the guest's changes over it, empties
// the initrd and makes the new root the root. With a scratch disk the layer is
// there, and root returns where the disk is; else it is in memory. It waits for
// still before anything moves that others may be at.
func root(wantScratch bool, still <-chan struct{}) (disk string, err error) {
	want := []string{imageDisk}
	if wantScratch {
		want = append(want, scratchDisk)
	}
	found, err := here.disks(want...)
	if err != nil {
		return "", err
	}
	image, scratch := found[imageDisk], found[scratchDisk]
	if wantScratch != (scratch != "") {
		return "", errors.New("a scratch disk is there and was not announced")
	}
	changes := Mount{"changes", "/changes", "tmpfs", FromHost, "mode=0755,size=" + memoryForFiles}
	if scratch != "" {
		changes = Mount{scratch, "/changes", "ext4", FromHost, DiskOptions}
	}
	if err := MountAll(Mount{image, "/image", "erofs", syscall.MS_RDONLY | syscall.MS_NODEV, ""}, changes); err != nil {
		return "", err
	}
	for _, d := range []string{"/changes/upper", "/changes/work"} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	if err := MountAll(Mount{"root", "/root", "overlay", syscall.MS_NODEV, "lowerdir=/image,upperdir=/changes/upper,workdir=/changes/work," + Plain}); err != nil {
		return "", err
	}
	if err := OwnFolders("/root"); err != nil {
		return "", err
	}
	<-still
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if err := syscall.Mount(d, "/root"+d, "", syscall.MS_MOVE, ""); err != nil {
			return "", failed("move "+d, err)
		}
	}
	if err := MountAll(Mount{"run", "/root/run", "tmpfs", FromHost, "mode=0755,size=5%"}); err != nil {
		return "", err
	}
	if scratch == "" { // one bound for both
		if err := os.Mkdir("/changes/tmp", 0o700); err != nil {
			return "", err
		}
		if err := os.Chmod("/changes/tmp", os.ModeSticky|0o777); err != nil {
			return "", err
		}
		if err := MountAll(Mount{"/changes/tmp", "/root/tmp", "", syscall.MS_BIND, ""}); err != nil {
			return "", err
		}
	}
	for _, d := range []string{ScratchDir, LowerDir, UpperDir} {
		if err := os.MkdirAll("/root"+d, 0o700); err != nil {
			return "", err
		}
	}
	if err := os.Chmod("/root"+CarrelDir, 0o755); err != nil {
		return "", err
	}
	if scratch != "" {
		if err := syscall.Mount("/changes", "/root"+ScratchDir, "", syscall.MS_MOVE, ""); err != nil {
			return "", failed("move the scratch disk", err)
		}
		disk = ScratchDir
	}
	// The running program stays: the kernel holds it open.
	_ = os.Remove("/init")
	if err := os.Chdir("/root"); err != nil {
		return "", err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return "", failed("change the root", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return "", failed("change the root", err)
	}
	return disk, os.Chdir("/")
}

// OwnFolders makes the folders of a root on which the agent mounts, while that
// root is not this process's own: an image may lack them, and where it has a link
// or a file instead, a mount would go where that says.
func OwnFolders(root string) error {
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/tmp"} {
		st, err := os.Lstat(root + d)
		if err == nil && st.IsDir() {
			continue
		}
		if err == nil {
			err = os.Remove(root + d)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return failed("make room for the guest's "+d, err)
		}
		if err := os.Mkdir(root+d, 0o755); err != nil {
			return failed("make the guest's "+d, err)
		}
	}
	return nil
}

// What files may take of the memory of a guest that has no disk: its changes
// and /tmp together, /dev/shm, and /run, which is root's. All of it full, a sixth
// of the memory is left for tasks, beside what is reserved for the agent, so that
// a task still runs, and can tidy up. With a disk, /dev/shm has what others give
// it.
const (
	memoryForFiles = "55%"
	memoryForShm   = "10%"
	usualShm       = "50%"
)

// trimTime bounds the trimming at a start, which goes on in the background.
const trimTime = time.Minute

// settle mounts and writes what programs expect beside their files.
func settle(disk string) error {
	var tmp []Mount
	shm := memoryForShm
	if disk != "" {
		// What was deleted just before the guest was killed is given back here.
		EmptyTrash(disk, func() { Trim(disk, time.Now().Add(trimTime)) })
		shm = usualShm
		tmp = []Mount{{"tmp", "/tmp", "tmpfs", FromHost, "mode=1777,size=25%"}}
		// A disk that is full to the last inode must not keep the guest
		// from starting: then memory has to do.
		if fresh, err := FreshDir(disk, "tmp", 0o1777); err == nil {
			tmp[0] = Mount{fresh, "/tmp", "", syscall.MS_BIND, ""}
		}
	}
	err := MountAll(append(tmp,
		Mount{"devpts", "/dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
		Mount{"shm", "/dev/shm", "tmpfs", FromHost, "mode=1777,size=" + shm},
		Mount{"mqueue", "/dev/mqueue", "mqueue", Quiet, ""},
	)...)
	if err != nil {
		return err
	}
	// What udev does elsewhere.
	for _, l := range [][2]string{{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"}} {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, d := range []string{"/dev/fuse", "/dev/net/tun"} {
		if err := os.Chmod(d, 0o666); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.MkdirAll("/etc", 0o755) // an image may lack it
}
