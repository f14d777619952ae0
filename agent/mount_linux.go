package agent

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Places of the agent in the guest. What is beneath them is the guest root's
// alone: it is the inside of mounts that tasks see elsewhere.
const (
	carrelDir  = "/run/carrel"
	scratchDir = carrelDir + "/scratch"
	lowerDir   = carrelDir + "/lower"
	upperDir   = carrelDir + "/upper"
)

// plain keeps an overlay's upper folder a complete and simple list of changes:
// no entry there refers to another place (filesystems/overlayfs.rst).
const plain = "redirect_dir=off,metacopy=off,index=off"

// diskOptions are those of a disk that is a sparse file on the host. What is
// deleted goes back to the host; inode tables that nobody has used are holes
// there, and read as zeros without being written as such in the background; and
// file data that the host could not take ends the file system rather than being
// read back as zeros later (Documentation/admin-guide/ext4.rst).
//
// The blocks that mkfs has reserved are for whom the capability CAP_SYS_RESOURCE
// makes out; the other one whom ext4 lets at them is resuid, by default uid 0 as
// which overlayfs writes for everybody.
const diskOptions = "discard,noinit_itable,data_err=abort,errors=remount-ro,resuid=65533"

const (
	quiet    = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	fromHost = unix.MS_NOSUID | unix.MS_NODEV
)

// mnt is one mount of the boot.
type mnt struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mnt) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	mount := unix.Mount
	if m.fstype == "overlay" {
		mount = mountPoorly
	}
	if err := mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s (%s) at %s: %w", m.source, m.fstype, m.target, err)
	}
	return nil
}

// mountPoorly mounts without CAP_SYS_RESOURCE. An overlay writes with the
// credentials of who mounted it, whoever asks (fs/overlayfs/file.c), and nobody's
// file is to take the disk's reserve through one.
func mountPoorly(source, target, fstype string, flags uintptr, data string) error {
	runtime.LockOSThread() // capabilities are a thread's
	defer runtime.UnlockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all, fewer [2]unix.CapUserData
	if err := unix.Capget(&hdr, &all[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	fewer = all
	fewer[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&hdr, &fewer[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	err := unix.Mount(source, target, fstype, flags, data)
	return errors.Join(err, os.NewSyscallError("capset", unix.Capset(&hdr, &all[0])))
}

func mountAll(ms ...mnt) error {
	for _, m := range ms {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// early mounts what everything else reads.
func early() error {
	return mountAll(
		mnt{"dev", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
		mnt{"proc", "/proc", "proc", quiet, ""},
		mnt{"sys", "/sys", "sysfs", quiet, ""},
	)
}

// console makes the machine's console this process's output: the kernel could
// not, if the initrd holds no /dev/console.
func console() {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	for i := range 3 {
		if fd != i {
			_ = unix.Dup3(fd, i, 0)
		}
	}
	if fd > 2 {
		_ = unix.Close(fd)
	}
}

// root mounts the image with a layer for the guest's changes over it, empties
// the initrd and makes the new root the root. With a scratch disk the layer is
// there, and root returns where the disk is; else it is in memory.
func root(wantScratch bool) (disk string, err error) {
	want := []string{imageDisk}
	if wantScratch {
		want = append(want, scratchDisk)
	}
	found, err := machine.disks(want...)
	if err != nil {
		return "", err
	}
	image, scratch := found[imageDisk], found[scratchDisk]
	if wantScratch != (scratch != "") {
		return "", fmt.Errorf("a scratch disk was announced: %t; one is there: %t", wantScratch, scratch != "")
	}
	changes := mnt{"changes", "/changes", "tmpfs", fromHost, "mode=0755,size=" + memoryForFiles}
	if scratch != "" {
		changes = mnt{scratch, "/changes", "ext4", fromHost, diskOptions}
	}
	if err := mountAll(mnt{image, "/image", "erofs", unix.MS_RDONLY | unix.MS_NODEV, ""}, changes); err != nil {
		return "", err
	}
	for _, d := range []string{"/changes/upper", "/changes/work"} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	if err := mountAll(mnt{"root", "/root", "overlay", unix.MS_NODEV, "lowerdir=/image,upperdir=/changes/upper,workdir=/changes/work," + plain}); err != nil {
		return "", err
	}
	if err := ownFolders("/root"); err != nil {
		return "", err
	}
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(d, "/root"+d, "", unix.MS_MOVE, ""); err != nil {
			return "", fmt.Errorf("move %s: %w", d, err)
		}
	}
	if err := mountAll(mnt{"run", "/root/run", "tmpfs", fromHost, "mode=0755,size=5%"}); err != nil {
		return "", err
	}
	if scratch == "" { // one bound for both
		if err := os.Mkdir("/changes/tmp", 0o700); err != nil {
			return "", err
		}
		if err := os.Chmod("/changes/tmp", os.ModeSticky|0o777); err != nil {
			return "", err
		}
		if err := mountAll(mnt{"/changes/tmp", "/root/tmp", "", unix.MS_BIND, ""}); err != nil {
			return "", err
		}
	}
	for _, d := range []string{scratchDir, lowerDir, upperDir} {
		if err := os.MkdirAll("/root"+d, 0o700); err != nil {
			return "", err
		}
	}
	if err := os.Chmod("/root"+carrelDir, 0o755); err != nil {
		return "", err
	}
	if scratch != "" {
		if err := unix.Mount("/changes", "/root"+scratchDir, "", unix.MS_MOVE, ""); err != nil {
			return "", fmt.Errorf("move the scratch disk: %w", err)
		}
		disk = scratchDir
	}
	// The running program stays: the kernel holds it open.
	_ = os.Remove("/init")
	if err := os.Chdir("/root"); err != nil {
		return "", err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return "", fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return "", fmt.Errorf("change the root: %w", err)
	}
	return disk, os.Chdir("/")
}

// ownFolders makes the folders of a root on which the agent mounts, while that
// root is not this process's own: an image may lack them, and where it has a link
// or a file instead, a mount would go where that says.
func ownFolders(root string) error {
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/tmp"} {
		st, err := os.Lstat(root + d)
		if err == nil && st.IsDir() {
			continue
		}
		if err == nil {
			err = os.Remove(root + d)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make room for the guest's %s: %w", d, err)
		}
		if err := os.Mkdir(root+d, 0o755); err != nil {
			return fmt.Errorf("make the guest's %s: %w", d, err)
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

// settle mounts and writes what programs expect beside their files.
func settle(disk string) error {
	var tmp []mnt
	shm := memoryForShm
	if disk != "" {
		emptyTrash(disk, func() { trim(disk) })
		shm = usualShm
		tmp = []mnt{{"tmp", "/tmp", "tmpfs", fromHost, "mode=1777,size=25%"}}
		// A disk that is full to the last inode must not keep the guest
		// from starting: then memory has to do.
		if fresh, err := freshDir(disk, "tmp", 0o1777); err == nil {
			tmp[0] = mnt{fresh, "/tmp", "", unix.MS_BIND, ""}
		}
	}
	err := mountAll(append(tmp,
		mnt{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
		mnt{"shm", "/dev/shm", "tmpfs", fromHost, "mode=1777,size=" + shm},
		mnt{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
		mnt{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, ""},
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
	return askAgent("nameserver 127.0.0.1\n")
}

// askAgent makes the folder that an image may lack, and has names asked of the
// agent.
func askAgent(resolver string) error {
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	if err := replace("/etc/resolv.conf", resolver); err != nil {
		complain(err)
	}
	return nil
}

// harden sets what keeps the guest's users apart.
func harden() error {
	for file, value := range map[string]string{
		"kernel/dmesg_restrict":            "1",
		"kernel/kptr_restrict":             "1",
		"kernel/unprivileged_bpf_disabled": "1",
		"fs/protected_hardlinks":           "1",
		"fs/protected_symlinks":            "1",
		"fs/protected_fifos":               "1",
		"fs/protected_regular":             "2",
		"net/ipv4/ping_group_range":        "0 2147483647",
	} {
		if err := os.WriteFile("/proc/sys/"+file, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s: %w", file, err)
		}
	}
	return nil
}

// freshDir makes an empty folder on the scratch disk. What it held before this
// start is moved aside and removed later, so that much of it does not hold the
// start up.
func freshDir(disk, name string, mode uint32) (string, error) {
	path := filepath.Join(disk, name)
	old := filepath.Join(disk, trashName, name+"-"+strconv.FormatInt(time.Now().UnixNano(), 10))
	if err := os.Rename(path, old); err == nil {
		go func() { _ = os.RemoveAll(old) }()
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", err
	}
	return path, unix.Chmod(path, mode)
}

// trashName is where on the scratch disk things wait for their removal.
const trashName = "trash"

// emptyTrash removes what an earlier start had no time to remove, and then calls
// after, if there was an earlier start.
func emptyTrash(disk string, after func()) {
	trash := filepath.Join(disk, trashName)
	if os.Mkdir(trash, 0o700) == nil {
		return
	}
	old, err := os.ReadDir(trash)
	if err != nil {
		return
	}
	go func() {
		for _, e := range old {
			_ = os.RemoveAll(filepath.Join(trash, e.Name()))
		}
		if after != nil {
			after()
		}
	}()
}

// trim gives back what the disk does not use. Deleting does so while the guest
// runs; what was deleted just before a guest was killed is found here, at its
// next start. The kernel skips what it has trimmed and what is in use.
func trim(disk string) {
	f, err := os.Open(disk)
	if err != nil {
		return
	}
	defer f.Close()
	// struct fstrim_range (linux/fs.h): all of it, in pieces of 1 MiB at least.
	r := struct{ start, length, least uint64 }{0, math.MaxUint64, 1 << 20}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&r)))
}

// fitrim is FITRIM, _IOWR('X', 121, struct fstrim_range), on amd64 and arm64.
const fitrim = 0xc0185879
