//go:build carreltest

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor/hcs"
	"github.com/carrel-vm/carrel/hypervisor/hcs/hcstest"
	"github.com/carrel-vm/carrel/images"
)

// Built with the tag carreltest, the daemon's guests are machines of the fake
// computecore.dll (scripts/test-wine): processes of this program that speak as
// an agent does, over sockets in the place of Hyper-V's. Daemon, keeper and
// driver are those of every Windows.
const driverName = "hcs, for tests"

// fakeBuild is the Windows that the driver is told it is on.
const fakeBuild = 22631

func keeperOptions(p place.Place, req guest.KeepRequest, _ *slog.Logger) (guest.KeepOptions, error) {
	s, address, err := hcstest.New() // it ends with the keeper
	if err != nil {
		return guest.KeepOptions{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return guest.KeepOptions{}, err
	}
	for k, v := range map[string]string{hcstest.Address: address, "FAKE_HCS": req.Parts.Dir, "FAKE_HCS_GUEST": self} {
		if err := os.Setenv(k, v); err != nil {
			return guest.KeepOptions{}, err
		}
	}
	// Before it has a guest, and starts what reads the guest's bytes.
	if err := shutProcess(); err != nil {
		return guest.KeepOptions{}, err
	}
	d := hcs.Over(hcs.Carrier{
		Dial: func(ctx context.Context, vm guid.GUID, port uint32) (net.Conn, error) {
			return s.Dial(ctx, vm.String(), port)
		},
		Listen: func(vm guid.GUID, port uint32) (net.Listener, error) { return s.Listen(vm.String(), port) },
		Pipe: func(name, _ string) (net.Listener, error) {
			return s.Listen(strings.TrimSuffix(strings.TrimPrefix(name, `\\.\pipe\carrel-`), "-console"), hcstest.Console)
		},
	}, fakeBuild)
	if err := d.Check(); err != nil {
		return guest.KeepOptions{}, err
	}
	return guest.KeepOptions{
		Driver: d, Confine: func() error { return nil }, Share: startShare, Absence: 10 * time.Minute,
		Describe: func(g *api.Guest) {
			g.Accelerator, g.AcceleratorReason = "none", "a fake for tests, without any boundary"
		},
	}, nil
}

// imageParts are files that are there.
func imageParts(s *images.Store) func(context.Context, string) (policy.Parts, func(), error) {
	return func(context.Context, string) (policy.Parts, func(), error) {
		p, err := place.Home()
		if err != nil {
			return policy.Parts{}, nil, err
		}
		part := filepath.Join(p.Cache, "part")
		if fi, err := os.Stat(part); err != nil || fi.Size() != 4096 { // one that is made anew is another image to the pool
			if err := os.WriteFile(part, make([]byte, 4096), 0o600); err != nil {
				return policy.Parts{}, nil, err
			}
		}
		return policy.Parts{Kernel: part, Initrd: part, Root: part}, func() {}, nil
	}
}

func runWall([]string) error { return errNotHere }

func init() {
	if len(os.Args) == 4 && os.Args[1] == "fake-guest" {
		if err := fakeGuest(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "fake guest:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
}

// fakeGuest speaks as an agent does. Its tasks print their arguments, or what
// fakeFile says of them; the task "wait" does not end by itself.
func fakeGuest(id string) error {
	if err := hcstest.Serve(id, func(port uint32) bool { return port == wire.PortAgent }, func(_ uint32, c net.Conn) { fakeCall(id, c) }); err != nil {
		return err
	}
	console, err := hcstest.Reach(id, hcstest.Console)
	if err != nil {
		return err
	}
	io.WriteString(console, "the fake guest is up\n")
	boot, err := hcstest.Reach(id, wire.PortBoot)
	if err != nil {
		return err
	}
	r := wire.NewReader(boot)
	if err := wire.Write(boot, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version, Agent: "fake"}}}); err != nil {
		return err
	}
	setup := new(wire.FromHost)
	if err := r.Read(setup); err != nil {
		return err
	}
	if err := fakeAttach(id, setup.GetSetup().GetMounts()); err != nil {
		return err
	}
	if err := wire.Write(boot, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{Steering: "none"}}}); err != nil {
		return err
	}
	for {
		f := new(wire.FromHost)
		if err := r.Read(f); err != nil {
			return nil // the host has let go of the machine
		}
		// A share that is taken away it keeps, as a hostile guest would.
		answer := &wire.Answer{Id: f.GetControl().GetId()}
		if m := f.GetControl().GetAttach(); m != nil {
			if err := fakeAttach(id, []*wire.Mount{m}); err != nil {
				answer.Error = err.Error()
			}
		}
		if f.GetControl().GetRefused() != nil {
			select {
			case fakeRefused <- struct{}{}:
			default:
			}
		}
		if err := wire.Write(boot, &wire.FromGuest{Kind: &wire.FromGuest_Answer{Answer: answer}}); err != nil {
			return err
		}
		if f.GetControl().GetPowerOff() != nil {
			return nil
		}
	}
}

func fakeCall(id string, c net.Conn) {
	defer c.Close()
	call := new(wire.Call)
	r := wire.NewReader(c)
	if r.Read(call) != nil {
		return
	}
	if call.GetForward() != nil { // whatever the port: it sends back what it is sent
		if wire.Write(c, &wire.Forwarded{}) == nil {
			io.Copy(c, c)
		}
		return
	}
	if call.GetReview() != nil {
		fakeReview(c, r, call.GetReview().GetPath())
		return
	}
	argv := call.GetExec().GetArgv()
	say := func(o *wire.Output) bool { return wire.Write(c, o) == nil }
	if len(argv) == 0 {
		say(&wire.Output{Kind: &wire.Output_Failed{Failed: &wire.Failed{Code: 127, Message: "a fake guest has no such call"}}})
		return
	}
	words := fakeFile(argv)
	if argv[0] == "echo" && len(argv) == 3 {
		words = fakeEcho(id, argv[1], argv[2])
	}
	if words == "" {
		words = strings.Join(argv, " ")
	}
	ok := say(&wire.Output{Kind: &wire.Output_Started{Started: &wire.Started{Pid: 1}}}) &&
		say(&wire.Output{Kind: &wire.Output_Stdout{Stdout: []byte(words + "\n")}})
	if !ok {
		return
	}
	if argv[0] == "wait" { // for a signal, or until nobody listens any more
		for {
			in := new(wire.Input)
			if r.Read(in) != nil {
				return
			}
			if in.GetSignal() != nil {
				break
			}
		}
	}
	say(&wire.Output{Kind: &wire.Output_Exit{Exit: &wire.Exit{Code: 7}}})
	c.SetReadDeadline(time.Now().Add(time.Minute))
	io.Copy(io.Discard, c) // until the host has read it
}
