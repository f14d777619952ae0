package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/qemu/vhostuser"
)

// shareSpec is what a share process is told, as its first line of input.
type shareSpec struct {
	Tag, Path string
	Dev, Ino  uint64
	ReadOnly  bool
}

// startShares returns the function with which a driver starts the process of a
// share. The process ends when its hypervisor or its keeper does.
func startShares(pins []policy.Pin) func(context.Context, int, hypervisor.Share) (hypervisor.ShareServer, error) {
	return func(ctx context.Context, i int, s hypervisor.Share) (hypervisor.ShareServer, error) {
		if i >= len(pins) || pins[i].Path != s.Path {
			return nil, fmt.Errorf("share %s was not granted", s.Path)
		}
		p, err := startShare(ctx, shareSpec{Tag: s.Tag, Path: s.Path, Dev: pins[i].Dev, Ino: pins[i].Ino, ReadOnly: s.ReadOnly})
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", s.Path, err)
		}
		return p, nil
	}
}

// shareProcess is one running share process. It dies with its keeper by the
// kernel's doing (prctl(2), PR_SET_PDEATHSIG), and in order when life is closed.
type shareProcess struct {
	cmd  *exec.Cmd
	conn *net.UnixConn
	life io.Closer
	done chan struct{} // closed when it has been reaped
}

// start starts the process from a thread that stays until the process has
// ended, since the signal at a parent's death is sent when that thread dies.
func (p *shareProcess) start() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
		}
	}()
	return <-started
}

func startShare(ctx context.Context, spec shareSpec) (*shareProcess, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "share"), os.NewFile(uintptr(fds[1]), "share")
	defer theirs.Close()
	c, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	out, outW, err := os.Pipe()
	if err != nil {
		c.Close()
		return nil, err
	}
	defer out.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, errors.Join(err, c.Close(), outW.Close())
	}
	cmd := exec.Command(self, "share")
	cmd.Env, cmd.Dir, cmd.Stderr = []string{}, "/", os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, outW}
	life, err := cmd.StdinPipe()
	p := &shareProcess{cmd: cmd, conn: c.(*net.UnixConn), life: life, done: make(chan struct{})}
	if err == nil {
		err = p.start()
	}
	outW.Close()
	if err != nil {
		c.Close()
		return nil, err
	}
	if err = json.NewEncoder(life).Encode(spec); err == nil {
		deadline, ok := ctx.Deadline()
		if !ok {
			deadline = time.Now().Add(15 * time.Second)
		}
		out.SetReadDeadline(deadline)
		var word string
		if word, err = bufio.NewReaderSize(out, 4096).ReadString('\n'); word != "ok\n" {
			if word = strings.TrimSpace(word); word != "" {
				err = errors.New(word)
			}
			err = fmt.Errorf("its server did not start: %w", err)
		}
	}
	if err != nil {
		p.conn.Close()
		p.Close()
		return nil, err
	}
	return p, nil
}

// Conn implements hypervisor.ShareServer.
func (p *shareProcess) Conn() net.Conn { return p.conn }

// Close implements hypervisor.ShareServer.
func (p *shareProcess) Close() error {
	p.life.Close()
	t := time.AfterFunc(2*time.Second, func() { p.cmd.Process.Kill() })
	defer t.Stop()
	<-p.done
	return nil
}

// runShare is the share process: it pins the folder, gives up everything else,
// says ok, and serves until its hypervisor or its keeper is gone.
func runShare() error {
	conn, out := os.NewFile(3, "vhost-user"), os.NewFile(4, "word")
	in := bufio.NewReaderSize(os.Stdin, 64<<10)
	err := func() error {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read what to share: %w", err)
		}
		var spec shareSpec
		if err := json.Unmarshal(line, &spec); err != nil {
			return fmt.Errorf("read what to share: %w", err)
		}
		return serveShare(spec, conn, in, func() {
			fmt.Fprintln(out, "ok")
			out.Close()
		})
	}()
	if err != nil {
		fmt.Fprintln(out, err)
	}
	return err
}

func serveShare(spec shareSpec, conn *os.File, life io.Reader, ready func()) error {
	root, err := share.OpenRoot(spec.Path)
	if err != nil {
		return err
	}
	if dev, ino := root.ID(); dev != spec.Dev || ino != spec.Ino {
		return errors.New("the folder was replaced by another while the guest started (choose it again)")
	}
	c, err := net.FileConn(conn)
	conn.Close()
	if err != nil {
		return err
	}
	// What remains lets root's share hold files of any owner; nothing else.
	if err := dropCapabilities(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER); err != nil {
		return err
	}
	if err := share.Confine(root, spec.ReadOnly); err != nil {
		return err
	}
	mode := rules.ReadWrite
	if spec.ReadOnly {
		mode = rules.ReadOnly
	}
	names, err := rules.Compile(rules.Options{Mode: mode, Plain: true})
	if err != nil {
		return err
	}
	srv := share.New(root, share.Options{Rules: names, UID: 1000, GID: 1000})
	defer srv.Close()
	ready()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // the keeper's end of this pipe is its life
		io.Copy(io.Discard, life)
		cancel()
	}()
	return vhostuser.Serve(ctx, c.(*net.UnixConn), vhostuser.NewFS(spec.Tag, srv))
}
