// Command carrel-agent runs inside a guest: as its PID 1, or, for tests, as an
// ordinary process.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/carrel-vm/carrel/agent"
)

func main() {
	agent.Reexec()
	if os.Getpid() == 1 {
		agent.Boot()
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "carrel-agent:", err)
			os.Exit(1)
		}
		return
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
