//go:build darwin || (linux && carrelbeside)

package main

import (
	"context"
	"flag"
	"net"
	"os"

	"github.com/carrel-vm/carrel/agent"
	"github.com/carrel-vm/carrel/agent/proxy"
)

// beside serves a guest whose wall is the host's own: processes of the same
// system and no machine.
func beside(args []string) error {
	f := flag.NewFlagSet("beside", flag.ExitOnError)
	boot := f.Uint("boot-fd", 3, "file descriptor of the boot stream")
	call := f.Uint("call-fd", 4, "file descriptor over which calls are passed")
	listener := f.Uint("proxy-fd", 0, "file descriptor of the proxy's listener; 0: there is no way out")
	var o agent.BesideOptions
	f.StringVar(&o.Dir, "dir", "", "the guest's folder for the agent's own files")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.Boot, o.Calls = os.NewFile(uintptr(*boot), "boot"), os.NewFile(uintptr(*call), "calls")
	if *listener != 0 {
		o.Proxy = os.NewFile(uintptr(*listener), "proxy")
	}
	o.NewProxy = func(l net.Listener, dial func(context.Context) (net.Conn, error)) (agent.Proxy, error) {
		return proxy.New(l, dial)
	}
	return agent.Beside(context.Background(), o)
}
