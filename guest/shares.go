package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of shares, of a guest's and of one.
const (
	// maxShareStreams is how many streams of shares are carried here at once:
	// those that attach, those that are copied, and reviews.
	maxShareStreams = 256
	// maxAttaching is how many of them may be such as have not said yet for
	// which share they are, so that there is always room for a review.
	maxAttaching = 64
	// maxAttach is the largest first frame of a share's stream, in bytes.
	maxAttach = 256
	// attachTimeout is how long a guest may take to say it, or to mount a share.
	attachTimeout = 30 * time.Second
	// detachTimeout bounds each step of a detach: the guest's, and its server's; and
	// endTimeout a server's end, for which a stop waits.
	detachTimeout = 10 * time.Second
	endTimeout    = 3 * time.Second
	// sessionTimeout is how long a task waits for its set of pre-images.
	sessionTimeout = 15 * time.Second
)

// Carriers of a share, as they are shown.
const (
	carriedByDevice = "virtio-fs"
	carriedByStream = "fuse"
	carriedByBind   = "bind"
)

// sharing is one share of a guest.
//
//	served ── stream, device ──> attached ── detach ──> (taken from the list)
//	   └───────────── the server's end ─────────────> dead (Cause says why)
type sharing struct {
	share   *api.Share
	mount   *wire.Mount
	carrier string
	// spec is what its server is told; unset for one that was handed over.
	spec ShareSpec
	// server is its server's process; nil: there is none, since the boundary
	// carries the folder itself.
	server   *control.Client
	attached bool // a stream is with the server, or on its way
	lost     bool // it is being detached
}

// shares are a guest's, as its keeper has them: which there are, what serves
// them, and by what they are carried.
type shares struct {
	start   func(context.Context, ShareSpec) (*control.Conn, error)
	log     *slog.Logger
	changed func()
	streams *bearer
	imports importer
	trace   *Trace
	// attaching has a place for each stream that has not said what it is for.
	attaching chan struct{}

	mu   sync.Mutex
	list []*sharing
	past []*control.Client // of devices whose share was taken away

	// sessions is held while a set of pre-images is begun; tasks are those that
	// run, the newest last: its set is the one that is written.
	sessions sync.Mutex
	tasks    []string
}

// newShares returns those that a guest starts with. start starts the process of
// one, changed is called when what is shown of them may be another.
func newShares(list []*sharing, start func(context.Context, ShareSpec) (*control.Conn, error), log *slog.Logger, changed func()) *shares {
	s := &shares{start: start, log: log, changed: changed, streams: newBearer(maxShareStreams), attaching: make(chan struct{}, maxAttaching), list: list}
	s.imports.shares = s
	return s
}

// begin starts the server of the share with number i.
func (s *shares) begin(ctx context.Context, i int) (*control.Client, error) {
	s.mu.Lock()
	if i >= len(s.list) {
		s.mu.Unlock()
		return nil, fmt.Errorf("there is no share %d", i)
	}
	sh := s.list[i]
	s.mu.Unlock()
	if s.start == nil {
		return nil, fmt.Errorf("share %s: this boundary has nothing that serves it", sh.share.Path)
	}
	started := s.trace.Begin("share process starts")
	conn, err := s.start(ctx, sh.spec)
	started()
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", sh.share.Path, err)
	}
	c := control.NewClient(conn, s.changed)
	s.mu.Lock()
	sh.server = c
	s.mu.Unlock()
	return c, nil
}

// serveFor is hypervisor.Handlers.Share.
func (s *shares) serveFor(ctx context.Context, i int, _ hypervisor.Share) (hypervisor.ShareServer, error) {
	c, err := s.begin(ctx, i)
	if err != nil {
		return nil, err
	}
	return &drivenShare{c}, nil
}

// drivenShare is a share's server as a driver has it.
type drivenShare struct{ c *control.Client }

// Serve implements hypervisor.ShareServer.
func (d *drivenShare) Serve(c hypervisor.Carrier, f *os.File) error {
	return d.c.Carry(control.Kind(c), f)
}

// Close implements hypervisor.ShareServer.
func (d *drivenShare) Close() error { return endServer(d.c) }

func endServer(c *control.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	return c.Close(ctx)
}

// take notes how a machine carries each share, and starts the servers of those
// for which the guest will dial.
func (s *shares) take(ctx context.Context, mounts []hypervisor.Mount) error {
	var servers sync.WaitGroup
	errs := make([]error, len(mounts))
	for i, m := range mounts {
		s.mu.Lock()
		if i >= len(s.list) {
			s.mu.Unlock()
			return fmt.Errorf("the driver mounts %d shares of %d", len(mounts), len(s.list))
		}
		s.list[i].mount = wireMount(m)
		s.list[i].carrier = carriers[m.Type]
		if m.Type == "bind" && s.list[i].server != nil { // what is bound is a mount of FUSE
			s.list[i].carrier = carriedByStream
		}
		s.mu.Unlock()
		if m.Type == "fuse" {
			servers.Go(func() { _, errs[i] = s.begin(ctx, i) })
		}
	}
	servers.Wait()
	return errors.Join(errs...)
}

var carriers = map[string]string{"virtiofs": carriedByDevice, "fuse": carriedByStream, "bind": carriedByBind}

func wireMount(m hypervisor.Mount) *wire.Mount {
	return &wire.Mount{Tag: m.Tag, Type: m.Type, Path: m.GuestPath, ReadOnly: m.ReadOnly, Overlay: m.Overlay, Layer: m.Layer}
}

// serve hands the streams that the guest opens for shares to their servers,
// until ln is closed, which the driver does when the machine ends.
func (s *shares) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		select {
		case s.attaching <- struct{}{}:
		default:
			c.Close()
			continue
		}
		if !s.streams.carry(c, func() { s.attach(c); <-s.attaching }) {
			<-s.attaching
			c.Close()
		}
	}
}

// attach reads for which share a stream is, and hands it over.
func (s *shares) attach(c net.Conn) {
	c.SetDeadline(time.Now().Add(attachTimeout))
	m := new(wire.Attach)
	// What follows the frame is for the server: nothing may be read ahead.
	err := (protodelim.UnmarshalOptions{MaxSize: maxAttach}).UnmarshalFrom(&exactReader{c}, m)
	if err == nil {
		c.SetDeadline(time.Time{})
		err = s.give(c, m.Tag)
	}
	if err != nil {
		c.Close()
		if n, say := s.streams.drop(); say && !errors.Is(err, io.EOF) {
			s.log.Warn("a stream for a share was dropped", "count", n, "share", wire.Text(m.Tag, 64), "error", err)
		}
	}
}

// give gives a stream to the server of a share that waits for one.
func (s *shares) give(c net.Conn, tag string) error {
	s.mu.Lock()
	var server *control.Client
	for _, sh := range s.list {
		if sh.mount != nil && sh.mount.Tag == tag && sh.mount.Type == "fuse" && !sh.lost && sh.server != nil && (!sh.attached || !sh.server.Carrying()) {
			sh.attached, server = true, sh.server
		}
	}
	s.mu.Unlock()
	if server == nil {
		return errors.New("no share of this name waits for a stream")
	}
	return s.streams.hand(c, func(theirs syscall.Conn) error { return server.Carry(control.Stream, theirs) })
}

// taskBegins has what is changed from now on kept for a task.
func (s *shares) taskBegins(task string) {
	s.sessions.Lock()
	defer s.sessions.Unlock()
	s.tasks = append(s.tasks, task)
	s.session(task)
}

// taskEnds ends a task's set of pre-images: what is changed afterwards counts for
// the task that runs still, or for none.
func (s *shares) taskEnds(task string) {
	s.sessions.Lock()
	defer s.sessions.Unlock()
	i := slices.Index(s.tasks, task)
	if i < 0 {
		return
	}
	newest := i == len(s.tasks)-1
	if s.tasks = slices.Delete(s.tasks, i, i+1); !newest {
		return
	}
	next := ""
	if n := len(s.tasks); n > 0 {
		next = s.tasks[n-1]
	}
	s.session(next)
}

// session begins, in every share that is written to, the set of pre-images of a
// task.
func (s *shares) session(task string) {
	ctx, cancel := context.WithTimeout(context.Background(), sessionTimeout)
	defer cancel()
	var all sync.WaitGroup
	for _, sh := range s.all() {
		if sh.server == nil || !writes(sh.share.Mode) {
			continue
		}
		all.Go(func() {
			if err := sh.server.Session(ctx, task); err != nil {
				s.log.Warn("a set of pre-images did not begin", "share", sh.share.Path, "task", task, "error", err)
			}
		})
	}
	all.Wait()
}

func writes(m api.ShareMode) bool {
	return m == api.ShareMode_SHARE_MODE_RW || m == api.ShareMode_SHARE_MODE_RW_NODELETE
}

func (s *shares) all() []sharing {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []sharing
	for _, sh := range s.list {
		list = append(list, *sh)
	}
	return list
}

// shown is what watchers see.
func (s *shares) shown() []*api.SharedFolder {
	var list []*api.SharedFolder
	for _, sh := range s.all() {
		f := &api.SharedFolder{Share: sh.share, Carrier: sh.carrier}
		if sh.server != nil {
			f.Cause = wire.Text(sh.server.Cause(), wire.MaxText)
		}
		list = append(list, f)
	}
	return list
}

// close ends every server and waits for what is carried.
func (s *shares) close() {
	s.streams.close()
	s.mu.Lock()
	servers := s.past
	for _, sh := range s.list {
		if sh.server != nil {
			servers = append(servers, sh.server)
		}
	}
	s.mu.Unlock()
	var all sync.WaitGroup
	for _, c := range servers {
		all.Go(func() {
			if err := endServer(c); err != nil {
				s.log.Warn("end a share's server", "error", err)
			}
		})
	}
	all.Wait()
}
