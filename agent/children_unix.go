//go:build unix

package agent

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// children starts processes and is the only one who waits for any: a PID 1
// must reap orphans too, and a wait for any child would otherwise take the
// status of one that somebody else waits for.
type children struct {
	starts chan func()
	// restrict, if set, takes rights from the thread that starts every process,
	// before it starts any; restricted is then closed, and err says what is
	// wrong: nothing is started.
	restrict   func() error
	restricted chan struct{}
	err        error
	mu         sync.Mutex
	byPID      map[int]*child
}

// child is one process that the agent started itself.
type child struct {
	all  *children
	pid  int
	done chan struct{}
	// status is set before done is closed.
	status syscall.WaitStatus
}

func newChildren(restrict func() error) *children {
	return &children{starts: make(chan func()), restrict: restrict, restricted: make(chan struct{}), byPID: make(map[int]*child)}
}

// run reaps until ctx ends. It keeps one thread for starting: a child's
// request to end with its parent (prctl(2), PR_SET_PDEATHSIG) means the thread
// that started it.
func (c *children) run(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	runtime.LockOSThread()
	if c.restrict == nil {
		defer runtime.UnlockOSThread()
	} else { // the thread ends with this goroutine
		c.err = c.restrict()
	}
	close(c.restricted)
	c.reap()
	for {
		select {
		case f := <-c.starts:
			f()
		case <-died:
			c.reap()
		case <-ctx.Done():
			return
		}
	}
}

func (c *children) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var st syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &st, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p, ok := c.byPID[pid]; ok {
			delete(c.byPID, pid)
			p.status = st
			close(p.done)
		}
	}
}

// start runs program, which sees files as its descriptors 0, 1, 2, ...
func (c *children) start(ctx context.Context, program string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	type result struct {
		p   *child
		err error
	}
	got := make(chan result, 1)
	f := func() {
		if c.err != nil {
			got <- result{nil, c.err}
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		pid, err := syscall.ForkExec(program, argv, attr)
		if err != nil {
			got <- result{nil, err}
			return
		}
		p := &child{all: c, pid: pid, done: make(chan struct{})}
		c.byPID[pid] = p
		got <- result{p, nil}
	}
	select {
	case c.starts <- f:
		r := <-got
		return r.p, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// signalGroup signals the process group that p leads. It does nothing once p
// was reaped: the number may be somebody else's by then.
func (p *child) signalGroup(sig syscall.Signal) error {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	if p.all.byPID[p.pid] != p {
		return unix.ESRCH
	}
	return syscall.Kill(-p.pid, sig)
}

// reused says whether p has ended and its number is another child's.
func (p *child) reused() bool {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	other := p.all.byPID[p.pid]
	return other != nil && other != p
}
