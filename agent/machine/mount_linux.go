package machine

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// Places of the agent in the guest. What is beneath them is the guest root's
// alone: it is the inside of mounts that tasks see elsewhere.
const (
	CarrelDir  = "/run/carrel"
	ScratchDir = CarrelDir + "/scratch"
	LowerDir   = CarrelDir + "/lower"
	UpperDir   = CarrelDir + "/upper"
)

// Plain keeps an overlay's upper folder a complete and simple list of changes:
// no entry there refers to another place (filesystems/overlayfs.rst).
const Plain = "redirect_dir=off,metacopy=off,index=off"

// DiskOptions are those of a disk that is a sparse file on the host. What is
// deleted goes back to the host; inode tables that nobody has used are holes
// there, and read as zeros without being written as such in the background; and
// file data that the host could not take ends the file system rather than being
// read back as zeros later (Documentation/admin-guide/ext4.rst).
//
// The blocks that mkfs has reserved are for whom the capability CAP_SYS_RESOURCE
// makes out; the other one whom ext4 lets at them is resuid, by default uid 0 as
// which overlayfs writes for everybody.
const DiskOptions = "discard,noinit_itable,data_err=abort,errors=remount-ro,resuid=65533"

// Quiet is for file systems of the kernel's own, FromHost for what has files that
// others made.
const (
	Quiet    = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	FromHost = syscall.MS_NOSUID | syscall.MS_NODEV
)

// Mount is one mount.
type Mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// At is a mount of source, of a type, at target.
func At(source, target, fstype string, flags uintptr, data string) Mount {
	return Mount{source, target, fstype, flags, data}
}

// Do makes the place if it is not there, and mounts.
func (m Mount) Do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	mount := syscall.Mount
	if m.fstype == "overlay" {
		mount = poorly
	}
	if err := mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return failed("mount "+m.source+" ("+m.fstype+") at "+m.target, err)
	}
	return nil
}

// poorly mounts without CAP_SYS_RESOURCE. An overlay writes with the
// credentials of who mounted it, whoever asks (fs/overlayfs/file.c), and nobody's
// file is to take the disk's reserve through one.
func poorly(source, target, fstype string, flags uintptr, data string) error {
	runtime.LockOSThread() // capabilities are a thread's
	defer runtime.UnlockOSThread()
	var all capabilities
	if err := all.call("capget", syscall.SYS_CAPGET); err != nil {
		return err
	}
	fewer := all
	fewer[0].effective &^= 1 << sysResource
	if err := fewer.call("capset", syscall.SYS_CAPSET); err != nil {
		return err
	}
	err := syscall.Mount(source, target, fstype, flags, data)
	return errors.Join(err, all.call("capset", syscall.SYS_CAPSET))
}

// capabilities are this thread's: struct __user_cap_data_struct (linux/capability.h).
type capabilities [2]struct{ effective, permitted, inheritable uint32 }

// sysResource is CAP_SYS_RESOURCE.
const sysResource = 24

func (c *capabilities) call(name string, nr uintptr) error {
	// struct __user_cap_header_struct: the version of capabilities, 3, and no thread but this.
	h := struct {
		version uint32
		pid     int32
	}{version: 0x20080522}
	if _, _, e := syscall.Syscall(nr, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(c)), 0); e != 0 {
		return os.NewSyscallError(name, e)
	}
	return nil
}

// MountAll makes one mount after the other.
func MountAll(ms ...Mount) error {
	for _, m := range ms {
		if err := m.Do(); err != nil {
			return err
		}
	}
	return nil
}
