package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/selftest"
	"github.com/carrel-vm/carrel/guest/wire"
)

// Words of the kernel's command line that are meant for the agent.
const (
	// probeWord asks for nothing but a sign of life.
	probeWord = "carrel.probe=1"
	// selfTestWord asks what the kernel has of what a guest needs.
	selfTestWord = "carrel.selftest=1"
	// scratchWord says that there is a disk that takes the guest's changes.
	scratchWord = "carrel.scratch="
	// powerOffWord says that the machine ends by a power-off: a reboot starts it
	// again there.
	powerOffWord = "carrel.end=poweroff"
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
//  1. devices, /proc, /sys; the kernel's command line
//  2. listen for calls, dial the host, be an Agent: say Hello; Setup waits for
//     what comes meanwhile:
//     - the network is steered
//     - the root file system, which then replaces the initrd
//     - /dev, /run, /tmp; then control groups, kernel settings, loopback
//  3. end the machine
func Boot() {
	unix.Umask(0o022)
	err := early()
	if err == nil {
		console()
		cmdline, _ := os.ReadFile("/proc/cmdline")
		words := strings.Fields(string(cmdline))
		ending = endOf(words)
		scratch := false
		for _, w := range words {
			if w == probeWord {
				fmt.Println(ProbeOK)
				reboot()
			}
			if w == selfTestWord {
				_ = selftest.Print(os.Stdout, selftest.Run(selftest.All()))
				// The serial port is slower than the reboot: tcdrain(3).
				_ = unix.IoctlSetInt(int(os.Stdout.Fd()), unix.TCSBRK, 1)
				reboot()
			}
			scratch = scratch || strings.HasPrefix(w, scratchWord)
		}
		err = guest(scratch)
	}
	if err != nil {
		complain(err)
	}
	reboot()
}

// guest boots the rest and serves the host until the end.
func guest(scratch bool) error {
	var o Options
	o.ownNetwork()
	disk := ""
	if scratch {
		disk = scratchDir
	}
	// The kernel works at these, and waits, longer than the agent does, and they have a processor to
	// themselves while Hello is on its way. Until the root is in place nothing else may look for a file.
	rooted := make(chan struct{})
	var slow errgroup.Group
	var noRoot error
	slow.Go(func() error {
		if noRoot = fileSystem(scratch); noRoot != nil {
			complain(noRoot)
		}
		close(rooted)
		if noRoot != nil {
			return noRoot
		}
		slow.Go(groups)
		return errors.Join(harden(), loopback())
	})
	settleNames := o.Settle
	o.Settle = func(s *wire.Setup) ([]string, error) {
		if <-rooted; noRoot != nil {
			return nil, noRoot
		}
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
	o.Prepare, o.Name, o.SetTime = slow.Wait, setName, setClock
	o.volumes = new(volumes)
	o.flush = func() { o.volumes.unmount(); unix.Sync() }
	o.PowerOff = func() { flush(disk) }
	return New(o).Run(context.Background())
}

// fileSystem makes the guest's file system.
func fileSystem(scratch bool) error {
	disk, err := root(scratch)
	if err != nil {
		return err
	}
	return settle(disk)
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

// ending is how this machine ends.
var ending = unix.LINUX_REBOOT_CMD_RESTART

// endOf is how the kernel's command line says that the machine ends. Without ACPI
// there is no power-off; the host starts such a machine so that a reboot ends it.
func endOf(words []string) int {
	if slices.Contains(words, powerOffWord) {
		return unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	return unix.LINUX_REBOOT_CMD_RESTART
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

// setName sets the guest's name and the files that tell it.
func setName(name string) error {
	if name == "" {
		return nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	// A full disk must not keep the guest from starting.
	err := errors.Join(
		replace("/etc/hostname", name+"\n"),
		replace("/etc/hosts", "127.0.0.1 localhost "+name+"\n::1 localhost ip6-localhost ip6-loopback\n"),
	)
	if err != nil {
		complain(err)
	}
	return nil
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
