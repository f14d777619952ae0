package hcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/Microsoft/go-winio/pkg/guid"
	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/hypervisor/hcs/hcstest"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// These tests need testdata/computecore.c as computecore.dll in the system's
// folder: scripts/test-wine puts it into a Wine prefix. On a real Windows they
// would find the real one, and refuse.

// TestMain is the machine where the fake starts this program as one.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "fake-guest" {
		if err := fakeGuest(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "fake guest:", err)
			os.Exit(3)
		}
		return
	}
	os.Exit(m.Run())
}

// fake is the fake's side of one test.
type fake struct {
	t   testing.TB
	dir string
}

// newFake has the fake record into a folder of this test.
func newFake(t testing.TB) *fake {
	t.Helper()
	if p := computecore.NewProc("FakeOpen"); p.Find() != nil {
		t.Fatal("computecore.dll is not the fake: run scripts/test-wine")
	}
	f := &fake{t, t.TempDir()}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	setenv(t, "FAKE_HCS", f.dir)
	setenv(t, "FAKE_HCS_GUEST", program)
	return f
}

func setenv(t testing.TB, key, value string) {
	t.Helper()
	t.(interface{ Setenv(key, value string) }).Setenv(key, value)
}

// script has functions fail: lines as testdata/computecore.c says.
func (f *fake) script(lines ...string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, "script.txt"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// calls are those recorded up to now.
func (f *fake) calls() []string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "calls.txt"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// count says how often a function was called.
func (f *fake) count(function string) (n int) {
	for _, c := range f.calls() {
		if name, _, _ := strings.Cut(c, " "); name == function {
			n++
		}
	}
	return n
}

// left says which handles are open, or nothing.
func left() string {
	var operations, systems int32
	computecore.NewProc("FakeOpen").Call(uintptr(unsafe.Pointer(&operations)), uintptr(unsafe.Pointer(&systems)))
	if operations == 0 && systems == 0 {
		return ""
	}
	return fmt.Sprintf("%d operations and %d systems are open", operations, systems)
}

func murder(t testing.TB) {
	t.Helper()
	if r, _, _ := computecore.NewProc("FakeMurder").Call(); r == 0 {
		t.Error("there was no machine to end")
	}
}

// fakeGuest is what runs in a machine of the fake: the suite's guest, with the
// switch for its sockets and the disks that the description names.
func fakeGuest(id, dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, id+".json"))
	if err != nil {
		return err
	}
	var d computeSystem
	if err := json.Unmarshal(b, &d); err != nil {
		return err
	}
	if strings.Contains(d.VirtualMachine.Chipset.LinuxKernelDirect.KernelCmdLine, "guestprog.mute=1") {
		time.Sleep(time.Hour)
	}
	g := guestport.Guest{
		Dial:    func(port uint32) (net.Conn, error) { return hcstest.Reach(id, port) },
		Panic:   func() {},
		Devices: func() int { return 0 },
		Disk: func(name string, write bool) (string, error) {
			a := d.VirtualMachine.Devices.Scsi["0"].Attachments[map[string]string{"vda": rootLUN, "vdb": scratchLUN}[name]]
			if a.ReadOnly && write {
				return "", errors.New("the description says that it is read-only")
			}
			return a.Path, nil
		},
	}
	console, err := hcstest.Reach(id, hcstest.Console)
	if err != nil {
		return err
	}
	g.Console = console
	g.Panic = func() {
		io.WriteString(console, "\x1b[31mKernel panic - not syncing: Attempted to kill init!\n")
		console.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, console) // until the host has read it
		os.Exit(0)
	}
	// The host knows where to dial before the guest says hello.
	if err := hcstest.Serve(id, func(port uint32) bool { return slices.Contains(guestport.All, port) }, g.Serve); err != nil {
		return err
	}
	boot, err := g.Dial(guestport.Boot)
	if err != nil {
		return err
	}
	return g.Obey(boot)
}

// newCarrier is a switch for one test.
func newCarrier(t testing.TB) Carrier {
	t.Helper()
	s, address, err := hcstest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	setenv(t, hcstest.Address, address)
	return Carrier{
		Dial: func(ctx context.Context, vm guid.GUID, port uint32) (net.Conn, error) {
			c, err := s.Dial(ctx, vm.String(), port)
			switch {
			case errors.Is(err, hcstest.ErrNotUp):
				err = &net.OpError{Op: "dial", Net: "hvsock", Err: os.NewSyscallError("connectex", windows.WSAENETUNREACH)}
			case errors.Is(err, hcstest.ErrRefused):
				err = windows.WSAECONNREFUSED
			}
			return c, err
		},
		Listen: func(vm guid.GUID, port uint32) (net.Listener, error) { return s.Listen(vm.String(), port) },
		Pipe: func(name, descriptor string) (net.Listener, error) {
			id := strings.TrimSuffix(strings.TrimPrefix(name, `\\.\pipe\carrel-`), "-console")
			if !strings.HasPrefix(descriptor, "D:P(A;;FA;;;SY)(A;;FA;;;S-1-") || name != ConsolePipe(id) {
				return nil, fmt.Errorf("a console %s with the access list %s", name, descriptor)
			}
			return s.Listen(id, hcstest.Console)
		},
	}
}

// local is a text as HCS hands one out.
func local(t testing.TB, s string) *uint16 {
	t.Helper()
	u, err := windows.UTF16FromString(s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := windows.LocalAlloc(0, uint32(2*len(u)))
	if err != nil {
		t.Fatal(err)
	}
	out := (*uint16)(*(*unsafe.Pointer)(unsafe.Pointer(&p))) // it is a pointer of Windows'
	copy(unsafe.Slice(out, len(u)), u)
	return out
}
