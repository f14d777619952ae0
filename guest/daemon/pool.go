package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// The pool holds guests that were started before anybody asked for one. Nobody
// sees them: they are in the table, since they have a name and a folder, and
// behave as if they were not. What a claim does is in claim.go.
//
//	booting ──> warm ── claim ──> somebody's
//	   └─ fails ─┴── given up: the pool is smaller, the daemon ends ──> removed
//
// It is filled when the daemon starts, when a guest was started, and when one that
// was somebody's has ended or was removed. One that does not start is not tried
// again before that.

// warm is what there is to know of a guest that is nobody's.
type warm struct {
	pool  policy.Pool   // by which it was made
	taken bool          // somebody claims it, or gives it up; Daemon.mu guards it
	left  bool          // it is given up; Daemon.mu guards it
	stale bool          // the pool would make it otherwise by now; its claim sets it
	gone  chan struct{} // closed when that is done
	stop  context.CancelFunc
	made  chan struct{} // closed when it is warm, or not; what follows is set then
	err   error
	since time.Time
	parts string   // its image's files, as they were
	walls []string // the walls that were good enough for it
}

// wanted is what the policy file says about the pool. One that cannot be read
// leaves the pool as it is. Without egress processes there is none: what a guest
// may reach comes to it by one.
func (d *Daemon) wanted() (policy.Pool, error) {
	file, err := policy.Load(filepath.Join(d.opts.Place.Config, policyFile))
	if err != nil {
		return policy.Pool{}, err
	}
	if file.Pool.Size > 0 && len(d.opts.Edge) == 0 {
		d.noPool.Do(func() {
			d.log.Warn("no guest is kept warm: on this host a guest that runs can be given no way out")
		})
		return policy.Pool{}, nil
	}
	return file.Pool, nil
}

func (d *Daemon) isWarm(e *entry) bool { return d.warmOf(e) != nil }

func (d *Daemon) warmOf(e *entry) *warm {
	d.mu.Lock()
	defer d.mu.Unlock()
	return e.warm
}

// refill begins as many guests as the pool lacks, and gives up those that it has
// no use for. It waits for neither.
func (d *Daemon) refill() {
	want, err := d.wanted()
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing || !d.recovered { // before that the table lacks guests, and their names
		return
	}
	have := 0
	for _, e := range d.table {
		switch w := e.warm; {
		case w == nil || w.taken:
		case like(w.pool, want) && have < want.Size:
			have++
		default:
			w.taken, w.left = true, true
			d.owned.Go(func() { d.giveUp(e) })
		}
	}
	for ; have < want.Size && len(d.table) < maxGuests; have++ {
		name := d.chooseName()
		if name == "" {
			return
		}
		e := newEntry(name, &api.Guest{Name: name, Spec: want.Spec(name), State: api.GuestState_GUEST_STATE_STARTING})
		ctx, stop := context.WithCancel(d.ctx)
		e.busy, e.by, e.warm = "started", guest.Making{Warm: true}, &warm{pool: want, stop: stop, made: make(chan struct{}), gone: make(chan struct{})}
		d.table[name] = e
		d.owned.Go(func() { d.warmUp(ctx, e, e.warm) })
	}
}

// like says whether guests of two pools are the same.
func like(a, b policy.Pool) bool {
	a.Size = b.Size
	return a == b
}

// warmUp starts a guest of the pool.
func (d *Daemon) warmUp(ctx context.Context, e *entry, w *warm) {
	defer w.stop()
	defer func() { w.since = time.Now(); close(w.made) }()
	image := d.resolved(w.pool.Image)
	if w.err = d.fits(e, image); w.err == nil {
		e.mu.Lock()
		e.info.Spec.Image = image
		e.mu.Unlock()
		w.err = d.warmStart(ctx, e)
	}
	if w.err == nil {
		e.release()
		d.log.Info("warm", "guest", e.name)
		return
	}
	d.mu.Lock()
	w.taken = true
	d.mu.Unlock()
	if ctx.Err() == nil { // else it was given up
		d.log.Warn("a guest of the pool does not start", "guest", e.name, "error", w.err)
	}
	d.discard(e)
	e.release()
}

// resolved is what a guest from an image starts from: a name of one that was
// built here, or a reference with its digest. Empty: it is not there.
func (d *Daemon) resolved(image string) string {
	image = imageName(image)
	_, r, err := d.opts.Images.Find(image)
	switch {
	case hypervisor.ValidName(image) && r.Digest == "":
		return image
	case err != nil:
		return ""
	}
	return r.String()
}

// fits says why a guest of the pool is better not started now.
func (d *Daemon) fits(e *entry, image string) error {
	if image == "" {
		return errors.New("its image is not here (carrel image pull)")
	}
	info, _, _ := e.get()
	spec := proto.Clone(info.Spec).(*api.GuestSpec)
	spec.Image = image
	_, err := d.decide(spec)
	return err
}

// giveUp ends a guest of the pool that was taken, and removes it. Its end does not
// wait for the next daemon if this one is about to end.
func (d *Daemon) giveUp(e *entry) {
	w := e.warm
	defer close(w.gone)
	w.stop()
	<-w.made
	if w.err != nil {
		return // it is gone
	}
	d.end(context.WithoutCancel(d.ctx), e, 0) // which is bounded
	if _, err := e.wait(d.ctx, func(_ *api.Guest, k *keeper) bool { return k == nil }); err == nil {
		d.discard(e)
	}
}

// emptyPool ends every guest of the pool, and returns when they are gone.
func (d *Daemon) emptyPool() {
	d.mu.Lock()
	var all []*warm
	for _, e := range d.table {
		w := e.warm
		if w != nil && !w.taken {
			w.taken, w.left = true, true
			d.owned.Go(func() { d.giveUp(e) })
		}
		if w != nil && w.left {
			all = append(all, w)
		}
	}
	d.mu.Unlock()
	for _, w := range all {
		<-w.gone
	}
}

// unclaimed removes a guest that was nobody's yet when the daemon before this one
// ended, or that a claim was not done with. No task has run in it.
func (d *Daemon) unclaimed(ctx context.Context, e *entry) {
	w := &warm{taken: true, left: true, gone: make(chan struct{})}
	e.warm = w
	d.table[e.name] = e
	d.owned.Go(func() {
		defer close(w.gone)
		if err := guest.KillKeeper(d.dir(e)); err != nil {
			d.log.Error("kill keeper", "guest", e.name, "error", err)
		}
		lctx, cancel := context.WithTimeout(ctx, guest.UnclaimedBound)
		defer cancel()
		unlock, err := guest.LockWait(lctx, d.dir(e))
		if err != nil {
			d.log.Error("a guest of the pool that another daemon left does not end", "guest", e.name, "error", err)
			return
		}
		unlock()
		d.discard(e)
	})
}

// filesOf tells an image's files from others that take their place.
func filesOf(p policy.Parts) string {
	var b strings.Builder
	for _, path := range []string{p.Kernel, p.Initrd, p.Root} {
		fmt.Fprintf(&b, "%q ", path)
		if fi, err := os.Stat(path); err == nil {
			fmt.Fprintf(&b, "%d %s ", fi.Size(), fi.ModTime().Format(time.RFC3339Nano))
		}
	}
	return b.String()
}
