package wall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// FuseDevice is the host's.
const FuseDevice = "/dev/fuse"

// fuseNumber is its number (Documentation/admin-guide/devices.txt).
var fuseNumber = unix.Mkdev(10, 229)

// fuseCure is what mends a host whose device is root's alone. udev's own rule
// opens it to everybody: a mount needs a right of its own.
const fuseCure = "sudo modprobe fuse; sudo chmod 0666 /dev/fuse, as udev does elsewhere; or share the folder as :plain, or use --boundary vm"

// FuseError says why no share can be served, or nil. As the host's root a wall
// makes a device of its own, or opens the host's.
func FuseError() error {
	err := unix.Access(FuseDevice, unix.R_OK|unix.W_OK)
	if err == nil {
		return nil
	}
	return &hypervisor.Error{Op: "serve a share with rules", Err: fmt.Errorf("%s: %w", FuseDevice, err), Cure: fuseCure}
}

// fuseDir holds the device that a guest of a range of users gets, in the
// private mount namespace.
const fuseDir = StageDir + "/dev"

// OwnFuse makes a /dev/fuse that belongs to the guest's root and is nobody
// else's, and returns where it is; the host's own where this root may make no
// devices and everybody may use that.
func (s *Files) OwnFuse() (string, error) {
	if err := os.Mkdir(fuseDir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(fuseDir, "fuse")
	err := unix.Mount("dev", fuseDir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=16k,nr_inodes=4")
	if err == nil {
		err = unix.Mknod(path, unix.S_IFCHR|0o600, int(fuseNumber))
	}
	if err == nil {
		err = os.Chown(path, int(s.Base), int(s.Base))
	}
	var st unix.Stat_t
	switch {
	case err == nil:
		return path, nil
	case unix.Stat(FuseDevice, &st) == nil && st.Mode&0o006 == 0o006:
		return FuseDevice, nil
	}
	return "", &hypervisor.Error{Op: "make a /dev/fuse for the guest", Err: err, Cure: fuseCure}
}

// MountServed mounts FUSE for share i where the sandbox's program finds it, and
// tells the keeper, who gives the device to the share's server. It waits for the
// server's first answer.
func (w *Process) MountServed(i int) (string, error) {
	sh := w.Spec.Shares[i]
	fd, err := unix.Open(FuseDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &hypervisor.Error{Op: "serve share " + sh.Path, Err: fmt.Errorf("%s: %w", FuseDevice, err), Cure: fuseCure}
	}
	path := filepath.Join(StageDir, "share"+strconv.Itoa(i))
	err = os.Mkdir(path, 0o755)
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if !sh.Writable {
		flags |= unix.MS_RDONLY
	}
	if err == nil {
		err = unix.Mount("share"+strconv.Itoa(i), path, "fuse", flags, fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions", fd, os.Geteuid(), os.Getegid()))
	}
	if err == nil {
		w.say(Word{Device: i + 1}, fd)
	}
	unix.Close(fd) // without a server, what looks at the mount has an error
	if err != nil {
		return "", fmt.Errorf("mount share %s: %w", sh.Path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("share %s: its server does not answer: %w", sh.Path, err)
	}
	return path, nil
}

// serveDevices starts the servers of the shares whose device the wall will
// bring.
func serveDevices(ctx context.Context, cfg hypervisor.Config, h hypervisor.Handlers, shares []Share) ([]hypervisor.ShareServer, error) {
	servers := make([]hypervisor.ShareServer, len(shares))
	for i, sh := range shares {
		if sh.By != ByDevice {
			continue
		}
		err := errors.New("nobody serves it")
		if h.Share != nil {
			servers[i], err = h.Share(ctx, i, cfg.Shares[i])
		}
		if err != nil {
			closeServers(servers)
			return nil, fmt.Errorf("share %s: %w", sh.Path, err)
		}
	}
	return servers, nil
}

func closeServers(servers []hypervisor.ShareServer) error {
	var errs []error
	for _, s := range servers {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// device gives a share's server the device that came for it.
func (v *VM) device(i int, fds []int) {
	for n, fd := range fds {
		f := os.NewFile(uintptr(fd), "fuse")
		if n == 0 && i < len(v.servers) && v.servers[i] != nil {
			v.servers[i].Serve(hypervisor.Device, f) // what fails shows at the mount
		}
		f.Close()
	}
}
