package agent

import (
	"context"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/steer"
	"github.com/carrel-vm/carrel/guest/wire"
)

// self is the agent's own program, also after the initrd was emptied.
const self = "/proc/self/exe"

// systemOptions are those of a guest that is a Linux of its own.
type systemOptions struct {
	// Network steers names and connections to this process, so that it can
	// carry them to the host; the agent closes it. nil: there is no way out.
	Network func() (*steer.Steering, error)
	// shares mount what Setup and the host's Controls say; nil: Mount does,
	// and there is no other share than Setup's.
	shares *shares
	// volumes mount the disks that Setup names; nil: there can be none.
	volumes *volumes
	// flush writes everything to the disks, after all tasks have ended; nil
	// does nothing.
	flush func()
}

// system is what an Agent has in such a guest.
type system struct {
	// egress is the way out or nil; made by Setup, before ready.
	egress *egress
}

func (a *Agent) closeSystem() {
	a.egress.close()
	a.o.shares.close()
	if a.o.beside != nil {
		a.o.beside.close()
	}
}

// obey speaks with the host over the boot stream until the guest's end.
func (a *Agent) obey(ctx context.Context, fail func(error)) error {
	if a.o.beside != nil {
		return a.besideHost(ctx, fail)
	}
	return a.host(ctx, fail)
}

// serveSystem serves the calls that only such a guest knows.
func (a *Agent) serveSystem(ctx context.Context, conn net.Conn, c *wire.Call) {
	switch k := c.Kind.(type) {
	case *wire.Call_Review:
		a.review(ctx, conn, k.Review)
	}
}

// newGroup makes the control group of a task, where there is one.
func (a *Agent) newGroup(e *wire.Exec) (group, error) {
	if a.o.Cgroup == "" {
		return nil, nil
	}
	cg, err := newCgroup(a.o.Cgroup, e.Id, e.Limits)
	if err != nil {
		return nil, err // and no group that holds a nil
	}
	return cg, nil
}

// strays returns what kills a task's processes that have left its own group.
func (a *Agent) strays(t *task) func() {
	if a.o.beside != nil {
		return t.killSession
	}
	return func() { killMarked(marker + "=" + t.id) }
}

// describe returns a file that gives the stage its description.
func (a *Agent) describe(b []byte) (*os.File, error) {
	if a.o.beside != nil {
		return a.o.beside.describe(b)
	}
	return anonymous("carrel-task", b)
}

// anonymous returns a file in memory that holds b.
func anonymous(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(b, 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
