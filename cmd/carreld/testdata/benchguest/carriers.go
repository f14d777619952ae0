package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent"
)

// Places of the machine in which all carriers are compared.
const (
	imageDir = "/image" // the default image, for its git
	diskDir  = "/disk"  // the local disk
	lowerDir = "/lower" // what lies under the layer of a share in review
)

// unmounts ends what mount began, by the name that it was given.
var unmounts = map[string]func() error{}

// disk finds the machine's disk that can be written to, or the one that cannot,
// which is the image.
func disk(writable bool) (string, error) {
	found, _ := filepath.Glob("/sys/block/vd*") // the pattern is sound
	for _, d := range found {
		ro, err := os.ReadFile(d + "/ro")
		if err == nil && (strings.TrimSpace(string(ro)) == "0") == writable {
			return "/dev/" + filepath.Base(d), nil
		}
	}
	return "", fmt.Errorf("no disk that can be written: %t", writable)
}

// mountAs mounts what is compared, in the way that its name has before a colon:
//
//	local:     the disk
//	fuse:TAG   a share of this tag over FUSE and vsock, with the agent's own relay
//	review:TAG the share's device, read only, under a layer on the disk
//	layer:     such a layer over an empty folder of the disk
//	TAG        the share's device
func mountAs(name string) error {
	target := filepath.Join("/mnt", name)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	kind, tag, _ := strings.Cut(name, ":")
	var err error
	switch kind {
	case "local":
		if err = mountDisk(); err == nil {
			err = unix.Mount(diskDir+"/root", target, "", unix.MS_BIND, "")
		}
	case "fuse":
		dial := func(_ context.Context, port uint32) (net.Conn, error) { return vsock.Dial(vsock.Host, port, nil) }
		unmounts[name], err = agent.BenchMount(context.Background(), dial, tag, target)
		return err
	case "review", "layer":
		if err = mountDisk(); err != nil {
			break
		}
		lower, upper, work := lowerDir, diskDir+"/"+kind+"/upper", diskDir+"/"+kind+"/work"
		for _, d := range []string{lower, upper, work, diskDir + "/empty"} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if kind == "layer" {
			lower = diskDir + "/empty"
		} else {
			err = unix.Mount(tag, lower, "virtiofs", unix.MS_RDONLY, "")
		}
		if err == nil {
			err = unix.Mount("layer", target, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work+",redirect_dir=off,metacopy=off,index=off")
		}
	default:
		err = unix.Mount(name, target, "virtiofs", 0, "")
	}
	unmounts[name] = func() error {
		err := unix.Unmount(target, 0)
		if err == nil && kind == "review" {
			err = unix.Unmount(lowerDir, 0)
		}
		if err == nil && (kind == "review" || kind == "layer" || kind == "local") {
			err = unix.Unmount(diskDir, 0)
		}
		return err
	}
	return err
}

func mountDisk() error {
	dev, err := disk(true)
	if err == nil {
		err = os.MkdirAll(diskDir, 0o755)
	}
	if err == nil {
		err = unix.Mount(dev, diskDir, "ext4", 0, "discard,errors=remount-ro")
	}
	return err
}

// createPackages makes n files as npm does when it installs: packages of ten,
// each with two folders, of 0.2 to 4 KiB, whose mode is set at last.
func createPackages(dir string, n int) error {
	body := bytes.Repeat([]byte("module.exports = require('./lib')\n"), 128)
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var at string
	for i := range n {
		if i%10 == 0 {
			at = fmt.Sprintf("%s/package%d", dir, i/10)
			if err := errors.Join(unix.Mkdir(at, 0o755), unix.Mkdir(at+"/lib", 0o755)); err != nil {
				return err
			}
		}
		name := fmt.Sprintf("%s/file%d.js", at, i%10)
		if i%2 == 0 {
			name = fmt.Sprintf("%s/lib/file%d.js", at, i%10)
		}
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o666)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, body[:200+i*397%3900])
		if err = errors.Join(err, unix.Fchmod(fd, 0o644), unix.Close(fd)); err != nil {
			return err
		}
	}
	return nil
}

// gitStatus is the image's git at work in the tree, and fails if it sees a
// change.
func gitStatus(name string) error {
	cmd := exec.Command("/usr/bin/git", "-c", "safe.directory=*", "status", "--porcelain")
	cmd.Dir = filepath.Join("/mnt", name, "tree")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: imageDir}
	out, err := cmd.CombinedOutput()
	if err == nil && len(out) > 0 {
		err = fmt.Errorf("the tree has changed")
	}
	if err != nil {
		return fmt.Errorf("git status: %w: %.300q", err, out)
	}
	return nil
}

// enter mounts the image, where the machine has it, so that a program of it sees
// what is mounted at /mnt later.
func enter() error {
	if _, err := disk(true); err != nil {
		return nil
	}
	dev, err := disk(false)
	if err == nil {
		err = os.MkdirAll(imageDir, 0o755)
	}
	if err == nil {
		err = unix.Mount(dev, imageDir, "erofs", unix.MS_RDONLY, "")
	}
	if err == nil {
		err = unix.Mount("", "/mnt", "", unix.MS_SHARED, "")
	}
	for _, d := range []string{"/dev", "/proc", "/mnt"} {
		if err == nil {
			err = unix.Mount(d, imageDir+d, "", unix.MS_BIND, "")
		}
	}
	return err
}
