// Guestprog is the guest of the conformance suite: as the init of a tiny
// initrd in a real machine, or as an ordinary process of the test driver, it
// serves a few ports on which the suite checks what a stream must do.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		fmt.Println("carrel-probe-ok")
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "beside" {
		if err := serveProcess(os.Args[2:], true); err != nil {
			fmt.Fprintln(os.Stderr, "guestprog:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && slices.Contains([]string{"serve", "wall", "sandbox"}, os.Args[1]) {
		if err := serveProcess(os.Args[2:], false); err != nil {
			fmt.Fprintln(os.Stderr, "guestprog:", err)
			os.Exit(1)
		}
		return
	}
	if err := serveMachine(); err != nil {
		fmt.Println("guestprog:", err)
	}
	reboot()
}

// serveMachine is PID 1 of a machine.
func serveMachine() error {
	for _, m := range []struct{ source, target, kind string }{
		{"dev", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"},
	} {
		os.MkdirAll(m.target, 0o755)
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if console, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		unix.Dup2(int(console.Fd()), 1)
		unix.Dup2(int(console.Fd()), 2)
	}
	words, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	cmdline := strings.Fields(string(words))
	for _, w := range cmdline {
		switch w {
		case "carrel.probe=1":
			fmt.Println("carrel-probe-ok")
			return nil
		case "guestprog.mute=1": // comes up and never says so
			time.Sleep(time.Hour)
		case "carrel.end=poweroff": // where a reboot starts the machine again
			ending = unix.LINUX_REBOOT_CMD_POWER_OFF
		}
	}
	g := newGuest(func(port uint32) (net.Conn, error) { return vsock.Dial(vsock.Host, port, nil) })
	for _, port := range guestport.All {
		ln, err := vsock.Listen(port, nil)
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go g.Serve(port, c)
			}
		}()
	}
	boot, err := g.Dial(guestport.Boot)
	if err != nil {
		return fmt.Errorf("dial the host: %w", err)
	}
	return g.Obey(boot)
}

func newGuest(dial func(port uint32) (net.Conn, error)) guestport.Guest {
	return guestport.Guest{
		Dial: dial, Panic: panicKernel, Disk: func(name string, _ bool) (string, error) { return "/dev/" + name, nil }, Console: os.Stdout,
		Devices: func() int { // how many drivers are bound to a virtio device
			bound, _ := filepath.Glob("/sys/bus/virtio/drivers/*/virtio*") // the pattern is sound
			return len(bound)
		},
	}
}

// panicKernel ends the machine as a broken kernel would; in the test driver,
// the process.
func panicKernel() {
	if os.Getpid() != 1 {
		unix.Kill(os.Getpid(), unix.SIGSEGV)
	}
	os.Exit(1) // "Attempted to kill init!"
}

// ending is how the machine ends.
var ending = unix.LINUX_REBOOT_CMD_RESTART

func reboot() {
	unix.Sync()
	unix.Reboot(ending)
	select {}
}
