//go:build bench

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
	"github.com/carrel-vm/carrel/hypervisor/qemu/vhostuser"
)

// virtiofsd is Debian 12's, the one in C.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

// Ports of testdata/benchguest.
const (
	benchHello   = 64
	benchCommand = 100
	benchEcho    = 101
	benchStream  = 102
)

// machinePlan is what a guest of benchguest has.
type machinePlan struct {
	shares []planned // share0 and up
	serial bool      // QEMU's virtio-serial
	// disk is a disk of the guest's, which then has the image too, or empty.
	disk string
	// live is a folder whose share has the tag "live" and is served over a stream
	// of the guest's, or empty.
	live string
}

// planned is a share of one: virtiofsd's, or ours.
type planned struct {
	dir   string
	rules rules.Options
	peer  bool
}

// benchMachine is a guest of our kernel with the carriers and shares of a plan,
// ours beside those that people use.
type benchMachine struct {
	b      *bench
	qemu   *exec.Cmd
	vsock  *vhostuser.Vsock
	serial net.Conn
	cmds   net.Conn
	lines  *bufio.Reader
	ours   string // the folder behind share0, ours
	peers  string // and behind share1, virtiofsd's
	// folders are those of the host, by the name of a carrier.
	folders map[string]string
}

// newBenchMachine boots the one of two carriers and two shares; the test's end
// takes it down.
func newBenchMachine(b *bench, w *world) *benchMachine {
	b.Helper()
	// In memory, where there is some: on a disk, what a create costs there is
	// most of what would be measured, and comes and goes with its journal.
	folders := w.work
	if dir := os.Getenv("CARREL_BENCH_MEMORY"); dir != "" {
		folders = dir
	}
	ours, peers := filepath.Join(folders, "ours"), filepath.Join(folders, "peers")
	for _, d := range []string{ours, peers} {
		if err := os.Mkdir(d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	m := machinePlan{serial: true, shares: []planned{
		{dir: ours, rules: rules.Options{Mode: rules.ReadWrite, Plain: true}},
		{dir: peers, peer: true},
	}}.boot(b)
	m.ours, m.peers = ours, peers
	return m
}

// boot starts the machine; the test's end takes it down.
func (p machinePlan) boot(b *bench) *benchMachine {
	b.Helper()
	m := &benchMachine{b: b, vsock: vhostuser.NewVsock(3)}
	dir := b.TempDir()
	cfg := b.config(dir)
	cfg.MemoryMiB, cfg.Initrd, cfg.Scratch = 1024, hypervisortest.Initrd(b, b.build("benchguest")), p.disk
	if p.disk == "" {
		cfg.Root = filepath.Join(dir, "disk") // Args wants one
		if err := os.WriteFile(cfg.Root, make([]byte, 1<<20), 0o600); err != nil {
			b.Fatal(err)
		}
	}

	var files []*os.File // QEMU's ends, descriptors 3 and up
	socket := func() *net.UnixConn {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fds[0]), "qemu"))
		f := os.NewFile(uintptr(fds[1]), "ours")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	inherit := func(c net.Conn) {
		f, err := c.(*net.UnixConn).File()
		c.Close()
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, f)
	}
	socket() // the monitor, with nobody at it
	console, vsock := socket(), socket()
	var at []int
	for i, s := range p.shares {
		tag := fmt.Sprintf("share%d", i)
		cfg.Shares, at = append(cfg.Shares, hypervisor.Share{Tag: tag}), append(at, 3+len(files))
		if s.peer {
			inherit(m.serveTheirs(s.dir, filepath.Join(dir, tag+".sock")))
		} else {
			inherit(m.serveOurs(tag, s))
		}
	}
	args := qemu.Args(cfg, qemu.Machine{Accel: b.accel.Name, QMP: 3, Console: 4, Vsock: 5, Shares: at})
	if p.serial {
		// Bus 0 is the last but one that Args would take.
		args = append(args, "-chardev", fmt.Sprintf("socket,id=serial,fd=%d", 3+len(files)),
			"-device", "virtio-serial-device,bus=virtio-mmio-bus.0", "-device", "virtserialport,chardev=serial,name=bench")
		m.serial = socket()
	}
	hello, err := m.vsock.Listen(benchHello)
	if err != nil {
		b.Fatal(err)
	}
	if p.live != "" {
		m.serveLive(planned{dir: p.live, rules: rules.Options{Mode: rules.ReadWrite}})
	}
	served := make(chan error, 1)
	go func() { served <- m.vsock.Serve(context.Background(), vsock) }()
	words := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(console, 64<<10))
		words <- string(text)
	}()
	m.qemu = exec.Command("qemu-system-x86_64", args...)
	stop := b.start(m.qemu, files)
	b.Cleanup(func() {
		stop()
		m.vsock.Close()
		if err := <-served; err != nil {
			b.Errorf("the vsock device: %v", err)
		}
		if text := <-words; text != "" {
			b.Logf("console: %.2000q", text)
		}
	})
	timer := time.AfterFunc(2*time.Minute, func() { hello.Close() })
	defer timer.Stop()
	if _, err := hello.Accept(); err != nil {
		stop()
		b.Fatalf("the guest did not say hello within two minutes: %v", err)
	}
	m.cmds = m.dial(benchCommand)
	m.lines = bufio.NewReader(m.cmds)
	return m
}

// config is a guest of the default size with nothing but what Args asks for.
func (b *bench) config(dir string) hypervisor.Config {
	return hypervisor.Config{Name: "bench", Dir: dir, Kernel: b.image.Kernel, Initrd: b.image.Initrd, Root: b.image.Root, CPUs: 2, MemoryMiB: 2048}
}

// build makes a guest program of testdata.
func (b *bench) build(name string) string {
	out := filepath.Join(b.TempDir(), name)
	cmd := exec.Command("go", "build", "-tags=bench", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", cmd.Args, err, text)
	}
	return out
}

// start runs a program that dies with this one and returns what ends it. Its
// files become descriptors 3 and up and are closed here.
func (b *bench) start(cmd *exec.Cmd, files []*os.File) (stop func()) {
	b.Helper()
	var said strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &said, &said, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the kernel's parent is a thread
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(done)
	}()
	err := <-started
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		cmd.Process.Kill()
		<-done
		if b.Failed() {
			b.Logf("%s said: %.2000q", cmd.Args[0], said.String())
		}
	}
}

func (m *benchMachine) dial(port uint32) net.Conn {
	c, err := m.vsock.Dial(m.b.Context(), port)
	if err != nil {
		m.b.Fatal(err)
	}
	m.b.Cleanup(func() { c.Close() })
	return c
}

// do has the guest do something and returns how long it took, in seconds.
func (m *benchMachine) do(word, share string, n int) float64 {
	m.b.Helper()
	m.cmds.SetDeadline(time.Now().Add(patience))
	begin := time.Now()
	fmt.Fprintf(m.cmds, "%s %s %d\n", word, share, n)
	answer, err := m.lines.ReadString('\n')
	took := time.Since(begin).Seconds()
	if err != nil {
		m.b.Fatalf("%s: %v", word, err)
	}
	var got int
	if _, err := fmt.Sscanf(answer, "ok %d\n", &got); err != nil || got != n {
		m.b.Fatalf("%s %s %d: the guest answers %.200q", word, share, n, answer)
	}
	return took
}

// transfer moves n bytes over c and returns MiB/s. With 'w' the guest sends.
func (m *benchMachine) transfer(c net.Conn, word byte, n int64) float64 {
	m.b.Helper()
	c.SetDeadline(time.Now().Add(patience))
	begin := time.Now()
	head := binary.BigEndian.AppendUint64([]byte{word}, uint64(n))
	_, err := c.Write(head)
	if err == nil && word == 'w' {
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(c, n)}, make([]byte, 64<<10))
	} else if err == nil {
		block := make([]byte, 64<<10)
		for left := n; left > 0 && err == nil; left -= int64(len(block)) {
			_, err = c.Write(block[:min(left, int64(len(block)))])
		}
		if err == nil {
			_, err = io.ReadFull(c, block[:1])
		}
	}
	if err != nil {
		m.b.Fatal(errors.Join(fmt.Errorf("transfer %c", word), err))
	}
	return float64(n) / (1 << 20) / time.Since(begin).Seconds()
}
