//go:build bench

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
)

func (w *world) carrel(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(w.bin, "carrel"), args...)
	cmd.Env = append(os.Environ(), "CARREL_HOME="+w.home)
	cmd.Dir = w.work
	return cmd
}

// cold compares a run in a fresh guest, from the command line to its end, with
// the least that the same QEMU does for the same kernel.
func (b *bench) cold(w *world) {
	init := filepath.Join(b.TempDir(), "init")
	if err := os.WriteFile(init, rebootProgram(), 0o755); err != nil {
		b.Fatal(err)
	}
	cfg := b.config(b.TempDir())
	cfg.Initrd = hypervisortest.Initrd(b, init)
	bare := bareArgs(qemu.Args(cfg, qemu.Machine{Accel: b.accel.Name}))
	run, boot := b.turns(b.n,
		func() float64 { return b.took(w.carrel("run", "-q", "--", "true")) },
		func() float64 { return b.took(exec.Command("qemu-system-x86_64", bare...)) })
	goal := limit{}
	if b.accel.Name == qemu.KVM {
		goal = most(400)
	}
	b.median("cold_run", "ms", run, goal, "`carrel run -- true` to its exit: image cached, daemon running, an empty folder shared")
	b.median("bare_boot", "ms", boot, limit{}, "bare QEMU to its exit: same kernel, machine and size, no device but a serial port, an init that only reboots")
	goal = most(1.6)
	if b.accel.Name == qemu.KVM {
		goal = limit{}
	}
	b.ratio("cold_run_over_bare_boot", "bare_boot", run, boot, goal, "pairs of the two above")
	for _, p := range []struct{ name, path, what string }{
		{"image_kernel", b.image.Kernel, "the default image's kernel, as it is booted"},
		{"image_initrd", b.image.Initrd, "its initrd: the agent, not packed"},
		{"image_root", b.image.Root, "its root, one file that all guests map"},
	} {
		fi, err := os.Stat(p.path)
		if err != nil {
			b.Fatal(err)
		}
		b.add(figure{Name: p.name, Value: float64(fi.Size()) / 1e6, Unit: "MB", N: 1, How: p.what}, limit{})
	}
}

// bareArgs leaves of a guest's command line what makes the machine.
func bareArgs(args []string) (bare []string) {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; a {
		case "-nodefaults", "-no-user-config", "-no-reboot":
			bare = append(bare, a)
			continue
		case "-device", "-blockdev":
		case "-object": // the machine's memory, not the random numbers' source
			if strings.Contains(args[i+1], "memory-backend") {
				bare = append(bare, a, args[i+1])
			}
		case "-chardev": // socket,id=NAME,fd=N
			if name := strings.Split(args[i+1], ",")[1]; name != "id=vsock" {
				bare = append(bare, a, "null,"+name)
			}
		default:
			bare = append(bare, a, args[i+1])
		}
		i++
	}
	return bare
}

// rebootProgram is a program of one system call, reboot(2): any other init
// would be measured as well.
func rebootProgram() []byte {
	code := []byte{
		0xb8, 169, 0, 0, 0, // mov eax, SYS_reboot
		0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, LINUX_REBOOT_MAGIC1
		0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, LINUX_REBOOT_MAGIC2
		0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, LINUX_REBOOT_CMD_RESTART
		0x0f, 0x05, // syscall
		0xeb, 0xfe, // jmp to itself
	}
	const base, headers = 0x400000, 64 + 56
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	p := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base,
		Filesz: headers + uint64(len(code)), Memsz: headers + uint64(len(code)), Align: 4096,
	}
	var out bytes.Buffer
	binary.Write(&out, binary.LittleEndian, h) // into memory
	binary.Write(&out, binary.LittleEndian, p)
	out.Write(code)
	return out.Bytes()
}

// running measures tasks in a guest that runs, and what the guest costs.
func (b *bench) running(w *world, c *client.Client, m *benchMachine) {
	folder := filepath.Join(w.work, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		b.Fatal(err)
	}
	g, err := c.StartGuest(b.Context(), &api.GuestSpec{Name: "bench", Shares: []*api.Share{
		{Path: folder, GuestPath: folder, Mode: api.ShareMode_SHARE_MODE_RW}}}, client.GuestOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.overhead(g, "idle", "a guest that runs nothing, one share")

	echo := m.dial(benchEcho)
	var viaClient, viaCLI, pings []float64
	for i := range 8*b.n + 1 {
		ping := b.ping(echo, 25)
		one := b.task(c, client.Task{Guest: "bench", Args: []string{"true"}})
		other := b.took(w.carrel("exec", "bench", "--", "true"))
		if i > 0 { // the first turn does not count
			pings, viaClient, viaCLI = append(pings, ping), append(viaClient, one), append(viaCLI, other)
		}
	}
	goal := most(60)
	if b.accel.Name == qemu.KVM {
		goal = most(10)
	}
	b.latency("vsock_ping", "ms", pings, limit{}, "64 B to a guest and back over our vsock device, the mean of 25 in a row")
	b.latency("exec_client", "ms", viaClient, goal, "`true` in a running guest through the Go client, from the call to its status")
	b.latency("exec_cli", "ms", viaCLI, limit{}, "`carrel exec NAME -- true` from its start to its exit")
	b.ratio("exec_client_over_ping", "vsock_ping", viaClient, pings, limit{}, "pairs of the two above")
	b.ratio("exec_cli_over_ping", "vsock_ping", viaCLI, pings, limit{}, "pairs of the two above")

	b.task(c, client.Task{Guest: "bench", Stdout: io.Discard, Args: []string{"head", "-c", fmt.Sprint(bulkBytes), "/dev/zero"}})
	b.overhead(g, "used", "the same guest after some tasks, one of them with 64 MiB of output")
	b.resident("daemon_used", w.d.Process.Pid, limit{}, "VmRSS of the daemon that served all of this")
	if _, err := c.StopGuest(b.Context(), "bench", time.Second); err != nil {
		b.Fatal(err)
	}
}

// ping returns the mean time of n round trips, in milliseconds.
func (b *bench) ping(c net.Conn, n int) float64 {
	block := make([]byte, 64)
	begin := time.Now()
	for range n {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, block); err != nil {
			b.Fatal(err)
		}
	}
	return ms(time.Since(begin)) / float64(n)
}
