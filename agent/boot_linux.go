package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/machine"
	"github.com/carrel-vm/carrel/agent/selftest"
	"github.com/carrel-vm/carrel/guest/wire"
)

// ProbeOK is what a guest started with carrel.probe=1 writes to its console
// before it ends.
const ProbeOK = "carrel-probe-ok"

// hostPatience bounds how long the guest waits for a host that does not listen
// yet; the host listens before it starts the guest.
const hostPatience = 10 * time.Second

// Boot is a guest's first process, from the kernel's call of /init to the end
// of the machine. It never returns.
//
//  1. devices, /proc, /sys; the kernel's command line: machine.Start, which goes
//     on with the root file system, control groups and kernel settings
//  2. the network is steered; listen for calls, dial the host, be an Agent: say
//     Hello. Setup waits for what goes on meanwhile
//  3. end the machine
func Boot() {
	m := machine.Begun()
	err := m.Early()
	if err == nil {
		console()
		if m.Has(machine.PowerOffWord) {
			ending = unix.LINUX_REBOOT_CMD_POWER_OFF
		}
		if m.Has(machine.ProbeWord) {
			fmt.Println(ProbeOK)
			reboot()
		}
		if m.Has(machine.SelfTestWord) {
			_ = selftest.Print(os.Stdout, selftest.Run(selftest.All()))
			// The serial port is slower than the reboot: tcdrain(3).
			_ = unix.IoctlSetInt(int(os.Stdout.Fd()), unix.TCSBRK, 1)
			reboot()
		}
		err = guest(m)
	}
	if err != nil {
		complain(err)
	}
	reboot()
}

// guest boots the rest and serves the host until the end.
func guest(start *machine.Start) error {
	var o Options
	o.ownNetwork()
	disk := ""
	if start.Scratch() {
		disk = scratchDir
	}
	settleNames := o.Settle
	o.Settle = func(s *wire.Setup) ([]string, error) {
		if err := start.Rooted(); err != nil {
			return nil, err
		}
		var name sync.WaitGroup
		defer name.Wait()
		name.Go(func() { writeName(s.Hostname) })
		return settleNames(s)
	}
	listener, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, wire.PortAgent, nil)
	if err != nil {
		return fmt.Errorf("listen for the host: %w", err)
	}
	boot, err := dialHost()
	if err != nil {
		return fmt.Errorf("dial the host: %w", err)
	}
	m := mounter{disk: disk, lower: virtioFS, options: plain}
	o.Boot, o.Listener = boot, hostOnly{listener}
	o.DialHost = func(_ context.Context, port uint32) (net.Conn, error) { return vsock.Dial(vsock.Host, port, nil) }
	o.Cgroup, o.User = tasksGroup, defaultUser
	o.shares = newShares(m, o.DialHost)
	o.Prepare, o.Name, o.SetTime = func() error {
		err := errors.Join(loopback(), start.Wait())
		if err != nil {
			complain(err) // the host may be gone, and the console tells what was wrong
		}
		return err
	}, setName, setClock
	o.volumes = new(volumes)
	o.flush = func() { o.volumes.giveBack(disk); o.volumes.unmount(); unix.Sync() }
	o.PowerOff = func() { flush(disk) }
	return New(o).Run(context.Background())
}

// dialHost opens the boot stream.
func dialHost() (*vsock.Conn, error) {
	end := time.Now().Add(hostPatience)
	for {
		c, err := vsock.Dial(vsock.Host, wire.PortBoot, nil)
		if err == nil || time.Now().After(end) {
			return c, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ending is how this machine ends. Without ACPI there is no power-off; the host
// starts such a machine so that a reboot ends it.
var ending = unix.LINUX_REBOOT_CMD_RESTART

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

// reboot ends the machine.
func reboot() {
	_ = unix.Reboot(ending)
	// Only a kernel that refuses gets here, and then there is no one to tell.
	select {}
}

// flush writes everything to the disk and closes its file system, so that the
// next start need not mend it.
func flush(disk string) {
	unix.Sync()
	if disk != "" {
		_ = unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
}

func setClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}
	return nil
}

// setName sets the guest's name.
func setName(name string) error {
	if name == "" {
		return nil
	}
	return unix.Sethostname([]byte(name))
}

// writeName writes the files that tell the guest's name.
func writeName(name string) {
	if name == "" {
		return
	}
	// A full disk must not keep the guest from starting.
	err := errors.Join(
		replace("/etc/hostname", name+"\n"),
		replace("/etc/hosts", "127.0.0.1 localhost "+name+"\n::1 localhost ip6-localhost ip6-loopback\n"),
	)
	if err != nil {
		complain(err)
	}
}

// complain tells the console, which the host keeps for people to read.
func complain(err error) {
	fmt.Println("carrel-agent:", text(err.Error(), wire.MaxText))
}

// replace writes a file anew; a link that has its name is not followed.
func replace(path, content string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}
