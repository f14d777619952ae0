package hypervisor

import (
	"errors"
	"fmt"
	"strings"
)

// Config describes one guest as plain data. It is made from a policy grant
// once and is not changed afterwards.
type Config struct {
	// Name is the guest's name, [a-z0-9][a-z0-9-]{0,30}.
	Name string
	// Dir is a private folder (0700) of this guest for a driver's own files.
	Dir string
	// Kernel, Initrd and Root are absolute paths of verified image parts.
	// Root is a read-only EROFS image that many guests share.
	Kernel, Initrd, Root string
	// Foreign says that the files in Root come from a registry or an archive. The
	// host's kernel does not mount such a root: a driver that has no machine
	// reads it itself.
	Foreign bool
	// Scratch is the absolute path of a raw ext4 disk image that only this
	// guest writes, or empty: then the guest's changes live in its memory.
	Scratch string
	// Cmdline is appended to the driver's own kernel command line.
	Cmdline []string
	// CPUs and MemoryMiB size the guest. There is no default here.
	CPUs      int
	MemoryMiB int
	// Shares are the host folders that the guest may see.
	Shares []Share
}

// Share is one host folder as a driver sees it.
type Share struct {
	// Tag names the device, "share0", "share1", ...
	Tag string
	// Path is the folder on the host, absolute and without links.
	Path string
	// GuestPath is where the agent mounts it.
	GuestPath string
	// ReadOnly is enforced by the share server on the host.
	ReadOnly bool
	// Overlay asks the agent for a layer over the share, so that the guest may
	// change its own view of it.
	Overlay bool
	// Layer names that layer where it is to outlive a stop: [0-9a-z]{1,32}.
	Layer string
	// Plain says that no rule of the share server narrows the share: a driver
	// may then use the hypervisor's or the kernel's own way of sharing. Every
	// other share is served by the share server and by nothing else.
	Plain bool
}

// Mount tells the agent how to reach one share.
type Mount struct {
	// Tag and Type are mount(2)'s source and type: "share0", "virtiofs".
	Tag, Type string
	GuestPath string
	ReadOnly  bool
	Overlay   bool
	Layer     string
}

// Limits of a Config, the same for every driver.
const (
	MaxCPUs      = 64
	MinMemoryMiB = 128
	MaxMemoryMiB = 256 << 10
)

// ErrNotReady is returned by Dial while the guest cannot take connections yet.
var ErrNotReady = errors.New("the guest does not take connections yet")

// ErrGone is returned by calls on a guest that has ended.
var ErrGone = errors.New("the guest is gone")

// Error is a driver's failure with what would mend it.
type Error struct {
	// Op is what was tried: "start qemu".
	Op string
	// Err is the cause.
	Err error
	// Cure is a sentence or a command that would help, or empty.
	Cure string
}

func (e *Error) Error() string {
	if e.Cure == "" {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %v (%s)", e.Op, e.Err, e.Cure)
}

func (e *Error) Unwrap() error { return e.Err }

// GoneError says how a guest ended when nobody asked it to.
type GoneError struct {
	// Cause is a sentence for the user: "qemu was killed by signal 9".
	Cause string
	// Detail is the driver's last words, bounded and escaped, or empty.
	Detail string
}

func (e *GoneError) Error() string {
	if e.Detail == "" {
		return e.Cause
	}
	return e.Cause + ": " + e.Detail
}

// Check refuses a Config that no driver could honour.
func (c *Config) Check() error {
	switch {
	case !ValidName(c.Name):
		return fmt.Errorf("guest name %q is not of the form [a-z0-9][a-z0-9-]{0,30}", c.Name)
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs asked for; between 1 and %d are possible", c.CPUs, MaxCPUs)
	case c.MemoryMiB < MinMemoryMiB || c.MemoryMiB > MaxMemoryMiB:
		return fmt.Errorf("%d MiB of memory asked for; between %d and %d are possible", c.MemoryMiB, MinMemoryMiB, MaxMemoryMiB)
	}
	for _, p := range []string{c.Dir, c.Kernel, c.Initrd, c.Root} {
		if !strings.HasPrefix(p, "/") && !(len(p) > 2 && p[1] == ':') {
			return fmt.Errorf("path %q is not absolute", p)
		}
	}
	for i, s := range c.Shares {
		if s.Tag != fmt.Sprintf("share%d", i) {
			return fmt.Errorf("share %d has tag %q, want share%d", i, s.Tag, i)
		}
	}
	return nil
}

// ValidName is the one validator of guest, image and task-group names.
func ValidName(s string) bool {
	if len(s) < 1 || len(s) > 31 || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
