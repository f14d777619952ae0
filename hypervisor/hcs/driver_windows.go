package hcs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/Microsoft/go-winio/pkg/guid"
	"github.com/Microsoft/hcsshim/osversion"
	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Driver makes guests with HCS.
type Driver struct {
	// carry is how bytes get in and out of a guest: Hyper-V's sockets and pipes,
	// or a test's, since these need a Hyper-V.
	carry Carrier
	// build and arch are this Windows'.
	build uint16
	arch  string
}

// Carrier opens what leads into one guest.
type Carrier struct {
	// Dial opens a stream to a port of the guest.
	Dial func(ctx context.Context, vm guid.GUID, port uint32) (net.Conn, error)
	// Listen takes the streams that the guest opens to a port of its host.
	Listen func(vm guid.GUID, port uint32) (net.Listener, error)
	// Pipe makes the pipe to which the guest's console writes, with its access list.
	Pipe func(name, descriptor string) (net.Listener, error)
}

// New returns a driver. Whether HCS is there shows at Check or Create.
func New() *Driver {
	return &Driver{carry: hyperV, build: osversion.Build(), arch: runtime.GOARCH}
}

// Over returns a driver for tests: of machines whose bytes go another way than
// Hyper-V's, on a Windows of that build.
func Over(c Carrier, build uint16) *Driver { return &Driver{carry: c, build: build, arch: AMD64} }

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "hcs" }

// Check says at once, and without making a guest, whether the service is there
// and answers this user. What is missing where it does not, doctor finds out.
func (d *Driver) Check() error {
	if d.build < MinBuild {
		return &hypervisor.Error{Op: "use the Host Compute Service", Err: fmt.Errorf("build %d of Windows is older than %d (Windows 10 2004)", d.build, MinBuild), Cure: "update Windows"}
	}
	err := library()
	if err == nil {
		err = ask()
	}
	if err != nil {
		return failed("use the Host Compute Service", err)
	}
	return nil
}

// Create implements hypervisor.Driver. The service knows the guest afterwards,
// and nothing of it runs.
func (d *Driver) Create(ctx context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (hypervisor.VM, error) {
	if err := CheckConfig(cfg); err != nil {
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	if err := library(); err != nil {
		return nil, failed("create guest", err)
	}
	for _, part := range []struct{ what, path string }{
		{"kernel", cfg.Kernel}, {"initrd", cfg.Initrd}, {"root image", cfg.Root}, {"scratch disk", cfg.Scratch},
	} {
		if part.path == "" {
			continue // only scratch may be empty
		}
		fi, err := os.Lstat(part.path)
		if err == nil && !fi.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", part.path)
		}
		if err != nil {
			return nil, &hypervisor.Error{Op: "open the guest's " + part.what, Err: err, Cure: cureImage}
		}
	}
	for _, vol := range cfg.Volumes {
		if fi, err := os.Lstat(vol.Path); err != nil || !fi.Mode().IsRegular() {
			if err == nil {
				err = fmt.Errorf("%s is not a regular file", vol.Path)
			}
			return nil, &hypervisor.Error{Op: "open the volume for " + vol.GuestPath, Err: err, Cure: "carrel volume ls shows those that there are"}
		}
	}
	user, err := userSID()
	if err != nil {
		return nil, &hypervisor.Error{Op: "create guest", Err: err}
	}
	v := newVM(d, cfg, h, newID(), user)
	if err := v.create(ctx); err != nil {
		return nil, errors.Join(failed("create guest", err), v.Close())
	}
	return v, nil
}

// newID is a random GUID, of version 4.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // it does not fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func userSID() (string, error) {
	u, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return "", fmt.Errorf("find out who you are: %w", err)
	}
	return u.User.Sid.String(), nil
}

// place puts what the guest needs into its folder, as HCS wants it, and returns
// how to find it.
func (v *VM) place() (Machine, error) {
	m := Machine{ID: v.id, Arch: v.driver.arch, Build: v.driver.build, User: v.user, Console: ConsolePipe(v.id)}
	m.Root = filepath.Join(v.cfg.Dir, "root.vhd")
	v.made = append(v.made, m.Root)
	if err := copyVHD(m.Root, v.cfg.Root); err != nil {
		return m, fmt.Errorf("make a virtual disk of the root image: %w", err)
	}
	v.files = append(v.files, m.Root)
	if m.Scratch = v.cfg.Scratch; m.Scratch != "" {
		if err := makeVHD(m.Scratch); err != nil {
			return m, fmt.Errorf("make a virtual disk of the scratch disk: %w", err)
		}
		v.files = append(v.files, m.Scratch)
	}
	for _, vol := range v.cfg.Volumes {
		if err := makeVHD(vol.Path); err != nil {
			return m, fmt.Errorf("make a virtual disk of the volume for %s: %w", vol.GuestPath, err)
		}
		m.Volumes, v.files = append(m.Volumes, vol.Path), append(v.files, vol.Path)
	}
	if m.Arch != ARM64 {
		v.files = append(v.files, v.cfg.Kernel, v.cfg.Initrd)
		return m, nil
	}
	m.Boot = filepath.Join(v.cfg.Dir, "boot")
	if err := os.Mkdir(m.Boot, 0o700); err != nil {
		return m, err
	}
	v.made = append(v.made, m.Boot)
	for name, from := range map[string]string{BootKernel: v.cfg.Kernel, BootInitrd: v.cfg.Initrd} {
		to := filepath.Join(m.Boot, name)
		v.made = append(v.made, to)
		if err := copyFile(to, from); err != nil {
			return m, err
		}
		v.files = append(v.files, to)
	}
	return m, nil
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from) // a kernel or an initrd
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
