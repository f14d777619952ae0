package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/agent/machine"
	"github.com/carrel-vm/carrel/agent/stage"
	"github.com/carrel-vm/carrel/guest/wire"
)

// copyName is the argv[0] of the process that copies for one call. It runs as
// the call's user, so that the kernel judges each file as it would for that
// user's own cp.
const copyName = machine.CopyGroup

// Files of a copy process.
const (
	copyConn = 3
	copySpec = 4
)

// copyAs starts the process that serves c on conn, and waits for it.
func (a *Agent) copyAs(ctx context.Context, conn net.Conn, c *wire.Call, user string) error {
	acct, change, err := a.account(user)
	if err != nil {
		return err
	}
	call, err := proto.Marshal(c)
	if err != nil {
		return err
	}
	// The stage's description carries the user; its only argument is the
	// call, with its NUL bytes made safe.
	spec := &stage.Spec{User: change, UID: acct.uid, GID: acct.gid, Groups: acct.groups, Argv: []string{fmt.Sprintf("%x", call)}}
	b, err := spec.Encode()
	if err != nil {
		return err
	}
	described, err := anonymous(copyName, b)
	if err != nil {
		return err
	}
	defer described.Close()
	peer, err := fileOf(conn)
	if err != nil {
		return err
	}
	defer peer.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	sys := &syscall.SysProcAttr{Setsid: true}
	if a.o.Cgroup != "" {
		cg, err := os.OpenFile(a.o.Cgroup+"/"+copyName, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer cg.Close()
		sys.UseCgroupFD, sys.CgroupFD = true, int(cg.Fd())
	}
	var raw uintptr
	ctl, err := peer.SyscallConn()
	if err == nil {
		// Fd would make the shared connection block.
		err = ctl.Control(func(fd uintptr) { raw = fd })
	}
	if err != nil {
		return err
	}
	p, err := a.children.start(ctx, self, []string{copyName}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Sys: sys,
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), raw, described.Fd()},
	})
	if err != nil {
		return fmt.Errorf("start a copy in the guest: %w", err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		_ = p.signalGroup(unix.SIGKILL)
		<-p.done
	}
	return nil
}

// fileOf duplicates the socket under conn.
func fileOf(conn net.Conn) (*os.File, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a %T is no socket", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(s uintptr) { fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "call"), nil
}

// Reexec makes this process what the agent started a copy of itself to be. It
// returns at once if the process is anything else, and never otherwise. A
// program that runs an Agent calls it first.
func Reexec() {
	if len(os.Args) != 1 || os.Args[0] != copyName {
		return
	}
	conn := os.NewFile(copyConn, "call")
	c, err := becomeCopier()
	leftOut := uint32(0)
	if err == nil {
		leftOut, err = doCopy(conn, c)
	}
	endCopy(conn, leftOut, err)
	os.Exit(0)
}

// becomeCopier reads what is asked and takes on its user. The kernel then
// forbids others of that user to trace the process and take its connection,
// because its identity changed without an exec (PR_SET_DUMPABLE, prctl(2)).
func becomeCopier() (*wire.Call, error) {
	f := os.NewFile(copySpec, "spec")
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, stage.MaxSpec))
	if err != nil {
		return nil, err
	}
	s, err := stage.Decode(b)
	if err != nil {
		return nil, err
	}
	var raw []byte
	if _, err := fmt.Sscanf(s.Argv[0], "%x", &raw); err != nil {
		return nil, err
	}
	c := &wire.Call{}
	if err := proto.Unmarshal(raw, c); err != nil {
		return nil, err
	}
	syscall.Umask(0o022)
	if !s.User {
		return c, nil
	}
	groups := make([]int, len(s.Groups))
	for i, g := range s.Groups {
		groups[i] = int(g)
	}
	if err := errors.Join(syscall.Setgroups(groups), syscall.Setgid(int(s.GID)), syscall.Setuid(int(s.UID))); err != nil {
		return nil, fmt.Errorf("take on the user: %w", err)
	}
	return c, unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
