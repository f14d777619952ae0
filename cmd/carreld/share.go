package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/packet"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// shareEnd is how long a share process that is to end waits for requests that
// the host's file system has not answered.
const shareEnd = 2 * time.Second

// reviewTime is how long a guest may take to say what it has changed: a little
// less than its keeper waits, so that the reason is the one that is said here.
const reviewTime = 59 * time.Second

// runShare is the share process: it is told what to serve on descriptor 3, pins
// the folder, gives up everything else, says that it is ready, and serves what it
// is handed there until the other end is gone.
func runShare(args []string) error {
	c, spec, err := toldShare(args)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := openShare(spec, c)
	if serr := c.Send(&control.Message{Kind: control.Ready, Error: control.Text(err)}, nil); err == nil {
		err = serr
	}
	if err != nil {
		return err
	}
	return p.serve()
}

// shareServer is what a share process is made of.
type shareServer struct {
	spec  control.Spec
	c     *control.Conn
	srv   *share.Server
	store *shareStore

	ctx      context.Context // the carriers'
	stop     context.CancelFunc
	gate     sync.RWMutex // held shared while a device's request is under way
	carrying sync.Mutex   // held by the carrier
	streams  sync.WaitGroup
	reviews  sync.WaitGroup
	once     sync.Once
}

// openShare opens the folder and confines the process to it.
func openShare(spec control.Spec, c *control.Conn) (*shareServer, error) {
	set, err := rules.Compile(spec.Rules)
	if err != nil {
		return nil, err
	}
	root, err := share.OpenRoot(spec.Path)
	if err != nil {
		return nil, err
	}
	if dev, ino := root.ID(); dev != spec.Dev || ino != spec.Ino {
		return nil, errors.New("the folder was replaced by another while the guest started (choose it again)")
	}
	store, err := openShareStore(spec, root, set)
	if err != nil {
		return nil, err
	}
	var own []string
	if spec.Store != "" {
		own = []string{spec.Store}
	}
	if err := confineShare(root, !set.Mode().Writes(), own...); err != nil {
		return nil, err
	}
	p := &shareServer{spec: spec, c: c, store: store}
	p.srv = share.New(root, store.options(share.Options{Rules: set, UID: spec.Owner, GID: spec.Owner}))
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// serve does what the keeper says until that is gone.
func (p *shareServer) serve() error {
	defer p.end()
	for {
		m, f, err := p.c.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch m.Kind {
		case control.VirtioFS, control.Stream, control.Device:
			p.carry(m.Kind, f)
		case control.Session:
			err := p.store.session(m.Task)
			p.srv.NewSession()
			p.done(m.ID, err)
		case control.Review:
			p.reviews.Go(func() { p.done(m.ID, p.review(f, m.Task, m.Ignored)) })
		case control.Close:
			p.shut()
			p.done(m.ID, nil)
		default:
			return fmt.Errorf("%w: %s is not for a share process", control.ErrMessage, m.Kind)
		}
	}
}

func (p *shareServer) done(id uint64, err error) {
	p.c.Send(&control.Message{Kind: control.Done, ID: id, Error: control.Text(err)}, nil)
}

// carry serves one carrier at a time: each begins the session anew.
func (p *shareServer) carry(kind control.Kind, f *inherit.End) {
	if !p.carrying.TryLock() {
		f.Close()
		return
	}
	serve, err := p.carrier(kind, f)
	if err != nil {
		p.carrying.Unlock()
		p.c.Send(&control.Message{Kind: control.Ended, Error: control.Text(err)}, nil)
		return
	}
	run := p.streams.Go
	if kind == control.VirtioFS {
		run = func(f func()) { go f() } // it outlives the folder: see carrier
	}
	run(func() {
		err := serve()
		if err == nil {
			err = errors.New("the guest let go of it")
		}
		p.carrying.Unlock()
		p.c.Send(&control.Message{Kind: control.Ended, Error: control.Text(err)}, nil)
	})
}

func (p *shareServer) carrier(kind control.Kind, f *inherit.End) (func() error, error) {
	if kind != control.Stream {
		return p.carryDevice(kind, f)
	}
	c, err := packet.Stream(f)
	return func() error { return p.srv.ServeStream(p.ctx, c) }, err
}

// review keeps what the guest says on a stream that it has changed.
func (p *shareServer) review(f *inherit.End, task string, ignored bool) error {
	c, err := packet.Stream(f)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(p.ctx, reviewTime)
	defer cancel()
	return p.store.review(ctx, c, task, ignored)
}

// shut lets go of the folder: what is under way is waited for, and nothing
// reaches it afterwards.
func (p *shareServer) shut() {
	p.once.Do(func() {
		p.stop()
		p.streams.Wait()
		p.reviews.Wait()
		p.gate.Lock()
		defer p.gate.Unlock()
		p.srv.Close()
		p.store.close()
	})
}

// end is shut within bounds: what the host's file system does not answer ends
// with the process.
func (p *shareServer) end() {
	shut := make(chan struct{})
	go func() { p.shut(); close(shut) }()
	select {
	case <-shut:
	case <-time.After(shareEnd):
	}
}
