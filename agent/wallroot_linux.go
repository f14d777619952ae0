package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/machine"
	"github.com/carrel-vm/carrel/guest/wire"
)

// Places where the driver of a process sandbox mounts what the guest's root is
// made of; package bubblewrap has the same.
const (
	wallImage   = "/image"
	wallShares  = "/shares"
	wallChanges = "/changes"
)

// plainUser is plain in a user namespace: the kernel's own notes about a layer
// are in user.* attributes there, since it does not let others be written, and
// nothing that they say of another place is followed.
const plainUser = "redirect_dir=nofollow,metacopy=off,index=off,userxattr"

// wallRoot makes the root file system and enters it. Nothing else that the
// driver mounted can be reached afterwards, but for shares, which wait in
// lowerDir for Setup. With a folder for changes it returns where that is.
func wallRoot(o WallOptions) (disk string, err error) {
	newRoot := wallImage
	if !o.PlainRoot {
		newRoot = "/root"
		if disk, err = layRoot(newRoot, o.MemoryMiB); err != nil {
			return "", err
		}
	}
	if err := machine.OwnFolders(newRoot); err != nil {
		return "", err
	}
	for _, d := range []string{"/proc", "/dev"} {
		if err := unix.Mount(d, newRoot+d, "", unix.MS_MOVE, ""); err != nil {
			return "", fmt.Errorf("move %s: %w", d, err)
		}
	}
	if err := machine.MountAll(mnt("run", newRoot+"/run", "tmpfs", fromHost, "mode=0755,size="+part(o.MemoryMiB, 10))); err != nil {
		return "", err
	}
	for _, d := range []string{scratchDir, lowerDir, upperDir} {
		if err := os.MkdirAll(newRoot+d, 0o700); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(newRoot+carrelDir, 0o755); err != nil {
		return "", err
	}
	if disk != "" {
		if err := unix.Mount(wallChanges, newRoot+scratchDir, "", unix.MS_MOVE, ""); err != nil {
			return "", fmt.Errorf("move the folder for changes: %w", err)
		}
		disk = scratchDir
	}
	shares, err := os.ReadDir(wallShares)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, s := range shares {
		at := filepath.Join(newRoot+lowerDir, s.Name())
		if err := os.Mkdir(at, 0o700); err != nil {
			return "", err
		}
		if err := unix.Mount(filepath.Join(wallShares, s.Name()), at, "", unix.MS_MOVE, ""); err != nil {
			return "", fmt.Errorf("move share %s: %w", s.Name(), err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return "", err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return "", fmt.Errorf("change the root: %w", err)
	}
	// The old root lies on top of the new one now.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return "", fmt.Errorf("leave the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return "", err
	}
	return disk, settleWall(o, disk)
}

// layRoot lays the guest's changes over the image, in memory or in a folder
// of the host.
func layRoot(at string, memoryMiB int) (disk string, err error) {
	changes := wallChanges
	if _, err := os.Stat(changes); err == nil {
		disk = changes
	} else if err := machine.MountAll(mnt("changes", changes, "tmpfs", fromHost, "mode=0755,size="+part(memoryMiB, 75))); err != nil {
		return "", err
	}
	for _, d := range []string{"/upper", "/work"} {
		if err := os.Mkdir(changes+d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	return disk, machine.MountAll(mnt("root", at, "overlay", fromHost, "lowerdir="+wallImage+",upperdir="+changes+"/upper,workdir="+changes+"/work,"+plainUser))
}

// part is percent of a guest's memory as a tmpfs takes it.
func part(memoryMiB, percent int) string { return strconv.Itoa(memoryMiB*percent/100) + "m" }

// settleWall mounts and writes what programs expect beside their files.
func settleWall(o WallOptions, disk string) error {
	tmp := mnt("tmp", "/tmp", "tmpfs", fromHost, "mode=1777,size="+part(o.MemoryMiB, 50))
	if disk != "" {
		machine.EmptyTrash(disk, nil)
		if fresh, err := machine.FreshDir(disk, "tmp", 0o1777); err == nil {
			tmp = mnt(fresh, "/tmp", "", unix.MS_BIND, "")
		}
	}
	pts := "mode=0620,gid=5,ptmxmode=0666"
	if o.OneUser {
		pts = "mode=0620,ptmxmode=0666" // there is no group 5
	}
	err := machine.MountAll(tmp,
		mnt("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, pts),
		mnt("shm", "/dev/shm", "tmpfs", fromHost, "mode=1777,size="+part(o.MemoryMiB, 50)),
		mnt("mqueue", "/dev/mqueue", "mqueue", quiet, ""),
	)
	if err != nil {
		return err
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"},
	} {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if o.PlainRoot {
		if err := furnish(); err != nil {
			return err
		}
	}
	return askAgent(resolver)
}

// furnish makes what the host's system lacks to be a guest's: folders to write
// to, and the users of a guest instead of the host's.
func furnish() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
		user int
	}{
		{"/etc", 0o755, 0}, {"/root", 0o700, 0}, {"/home", 0o755, 0}, {"/home/carrel", 0o755, 1000}, {"/mnt", 0o755, 0}, {"/srv", 0o755, 0},
		{"/opt", 0o755, 0}, {"/sys", 0o555, 0}, {"/var", 0o755, 0}, {"/var/lib", 0o755, 0}, {"/var/cache", 0o755, 0}, {"/var/log", 0o755, 0},
		{"/var/tmp", 0o777 | os.ModeSticky, 0},
	} {
		if err := os.MkdirAll(d.path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
		// Where there is one user, it owns everything.
		if err := os.Chown(d.path, d.user, d.user); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	// Those that bwrap made on its way to others.
	for _, d := range []string{"/etc/ssl", "/etc/pki", "/etc/pki/tls", "/etc/pki/ca-trust"} {
		if err := os.Chmod(d, 0o755); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for path, content := range map[string]string{
		"/etc/passwd":        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\ncarrel:x:1000:1000:carrel:/home/carrel:/bin/bash\n",
		"/etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\ncarrel:x:1000:\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
	} {
		if err := replace(path, content); err != nil {
			return err
		}
	}
	if err := os.Symlink("/proc/self/mounts", "/etc/mtab"); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return ownCertificates()
}

// Bounds of a copy of the host's certificates, far above any distribution's.
const (
	maxHostCertificates     = 8192
	maxHostCertificateBytes = 16 << 20
)

// ownCertificates replaces the host's folder of certificates by a copy, to
// which the guest's are added: neither the guest's user nor its root may write
// to a file of the host's root, nor to a layer over it.
func ownCertificates() error {
	const certs = "/etc/ssl/certs"
	if _, err := os.Stat(certs); err != nil {
		return nil // the host has them elsewhere, and they stay as they are
	}
	to := upperDir + "/certs"
	n, size := 0, int64(0)
	err := filepath.WalkDir(certs, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > maxHostCertificates {
			return fmt.Errorf("more than %d files", maxHostCertificates)
		}
		at := to + strings.TrimPrefix(path, certs)
		switch {
		case e.IsDir():
			return os.Mkdir(at, 0o755)
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, at)
		case !e.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrPermission) {
			return nil // not for everybody, so not for a guest
		}
		if size += int64(len(b)); err == nil && size > maxHostCertificateBytes {
			err = fmt.Errorf("more than %d bytes", maxHostCertificateBytes)
		}
		if err != nil {
			return err
		}
		return os.WriteFile(at, b, 0o644)
	})
	if err != nil {
		return fmt.Errorf("copy the host's certificates: %w", err)
	}
	return machine.MountAll(mnt(to, certs, "", unix.MS_BIND, ""))
}

// bindType is the type of a share that the driver has mounted.
const bindType = "bind"

// bound mounts share i, which the driver has mounted beneath lowerDir, at its
// place. It is mounted a second time: in a namespace beneath, the first place
// cannot be given up.
func bound(i int, s *wire.Mount, at string) error {
	if s.Type != bindType {
		return fmt.Errorf("a share of type %.20q is unknown to this agent", s.Type)
	}
	from := filepath.Join(lowerDir, strconv.Itoa(i))
	if at == from {
		return nil // it is there
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount share %s at %s: %w", s.Tag, at, err)
	}
	return nil
}
