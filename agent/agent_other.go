//go:build unix && !linux

package agent

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/carrel-vm/carrel/guest/wire"
)

// self is the agent's own program.
var self, _ = os.Executable() // without it no task starts, and says so

// systemOptions and system are what only Linux has.
type (
	systemOptions struct{}
	system        struct{}
)

var errBeside = errors.New("the agent of a guest of this system is one beside its programs only")

func (a *Agent) closeSystem() { a.o.beside.close() }

func (a *Agent) obey(ctx context.Context, fail func(error)) error { return a.besideHost(ctx, fail) }

// serveSystem ends calls that are Linux's.
func (a *Agent) serveSystem(context.Context, net.Conn, *wire.Call) {}

func (a *Agent) newGroup(*wire.Exec) (group, error) { return nil, nil }

func (a *Agent) strays(t *task) func() { return t.killSession }

func (a *Agent) describe(b []byte) (*os.File, error) { return a.o.beside.describe(b) }

func (a *Agent) copyAs(context.Context, net.Conn, *wire.Call, string) error { return errBeside }

// processes are the numbers that a process can have: the wall lets nobody list
// those that there are (PID_MAX, bsd/sys/proc_internal.h of XNU).
func processes(yield func(int) bool) {
	for pid := 2; pid < 100_000; pid++ {
		if !yield(pid) {
			return
		}
	}
}
