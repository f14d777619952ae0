// Command carrel-agent runs inside a guest: as a machine's PID 1, as the first
// process of a process or gVisor sandbox, or, for tests, as an ordinary process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/carrel-vm/carrel/agent"
	"github.com/carrel-vm/carrel/agent/selftest"
)

// verbs are what it can be started for, besides being the first process.
var verbs = map[string]func([]string) error{"serve": serve, "wall": wall, "sandbox": sandbox, "probe": probe, "selftest": selfTest}

func main() {
	agent.Reexec()
	if len(os.Args) > 1 && verbs[os.Args[1]] != nil {
		if err := verbs[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "carrel-agent:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() == 1 {
		agent.Boot()
	}
	fmt.Fprintln(os.Stderr, "carrel-agent runs inside a guest, as its first process. To start a guest: carrel run -- COMMAND")
	os.Exit(2)
}

func serve(args []string) error {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	boot := f.Uint("boot-fd", 3, "file descriptor of the boot stream")
	call := f.Uint("call-fd", 4, "file descriptor over which calls are passed")
	if err := f.Parse(args); err != nil {
		return err
	}
	return agent.Serve(context.Background(), os.NewFile(uintptr(*boot), "boot"), os.NewFile(uintptr(*call), "calls"))
}

// probe shows that a sandbox runs programs.
func probe([]string) error {
	fmt.Println(agent.ProbeOK)
	return nil
}

// selfTest says what the kernel has of what a guest needs, and fails if that is not all.
func selfTest(args []string) error {
	f := flag.NewFlagSet("selftest", flag.ExitOnError)
	asJSON := f.Bool("json", false, "print a JSON array")
	if err := f.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the self-test needs root (carrel run -u root -- /proc/1/exe selftest)")
	}
	results := selftest.Run(selftest.All())
	show := selftest.Print
	if *asJSON {
		show = selftest.PrintJSON
	}
	return errors.Join(show(os.Stdout, results), selftest.Err(results))
}

func sandbox(args []string) error {
	f := flag.NewFlagSet("sandbox", flag.ExitOnError)
	boot := f.Uint("boot-fd", 2, "file descriptor of the boot stream")
	call := f.Uint("call-fd", 0, "file descriptor over which calls are passed")
	var o agent.SandboxOptions
	f.BoolVar(&o.OneUser, "one-user", false, "the sandbox has a single user")
	f.IntVar(&o.MemoryMiB, "memory", 128, "the guest's memory in MiB")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.Boot, o.Calls = os.NewFile(uintptr(*boot), "boot"), os.NewFile(uintptr(*call), "calls")
	return agent.Sandbox(context.Background(), o)
}

func wall(args []string) error {
	f := flag.NewFlagSet("wall", flag.ExitOnError)
	boot := f.Uint("boot-fd", 3, "file descriptor of the boot stream")
	call := f.Uint("call-fd", 4, "file descriptor over which calls are passed")
	var o agent.WallOptions
	f.BoolVar(&o.PlainRoot, "plain-root", false, "the root file system needs no layer")
	f.BoolVar(&o.OneUser, "one-user", false, "the sandbox has a single user")
	f.BoolVar(&o.Inner, "inner", false, "the namespace of user 1000")
	f.IntVar(&o.MemoryMiB, "memory", 128, "the guest's memory in MiB")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.Boot, o.Calls = os.NewFile(uintptr(*boot), "boot"), os.NewFile(uintptr(*call), "calls")
	return agent.Wall(context.Background(), o)
}
