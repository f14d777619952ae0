package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/daemon/store"
)

// A request with an idempotency key is carried out once, also when the daemon
// dies in the middle of it:
//
//	of a task     the keeper writes the key with the task, before it accepts it
//	of a guest    the key is taken in the index, then written into the guest's
//	              folder as that is made, then answered in the index
//
// While the guest is there its folder knows the key; after that the index does,
// for a day.

// indexError is the index's error in the API's words.
func indexError(err error) error {
	switch {
	case errors.Is(err, store.ErrReused):
		return guest.Reused()
	case errors.Is(err, store.ErrNoRoom):
		return api.NewError(connect.CodeResourceExhausted, "disk", err.Error(), "make room on the disk")
	case errors.Is(err, store.ErrNone), errors.Is(err, store.ErrBroken):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodeUnavailable, "index", cause, cure)
	}
	return err
}

func checkKey(key string) error {
	if len(key) > store.MaxKey {
		return api.NewError(connect.CodeInvalidArgument, "bad_key", fmt.Sprintf("the idempotency key has %d bytes; %d are possible", len(key), store.MaxKey), "take a shorter one")
	}
	return nil
}

// turn makes those that come with the same key wait for each other.
func (d *Daemon) turn(ctx context.Context, key string) (done func(), err error) {
	for {
		d.mu.Lock()
		busy := d.keys[key]
		if busy == nil {
			mine := make(chan struct{})
			d.keys[key] = mine
			d.mu.Unlock()
			return func() {
				d.mu.Lock()
				delete(d.keys, key)
				d.mu.Unlock()
				close(mine)
			}, nil
		}
		d.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// onceGuest is begin for a request with a key: the first one's answer is
// everybody's. A request that failed may be tried again.
func (d *Daemon) onceGuest(ctx context.Context, r *api.StartGuestRequest, begin func(by guest.Making) (*api.Guest, error), again func(e *entry) (*api.Guest, error)) (*api.Guest, error) {
	key := r.IdempotencyKey
	if key == "" {
		return begin(guest.Making{})
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	bare := proto.Clone(r).(*api.StartGuestRequest)
	bare.IdempotencyKey = ""
	sum, err := guest.Digest(bare)
	if err != nil {
		return nil, err
	}
	done, err := d.turn(ctx, key)
	if err != nil {
		return nil, err
	}
	defer done()
	answer, _, err := d.index.Key(ctx, key, apiconnect.GuestServiceStartProcedure, sum)
	if err != nil {
		return nil, indexError(err)
	}
	if answer != nil {
		info := new(api.Guest)
		if err := proto.Unmarshal(answer, info); err != nil {
			return nil, fmt.Errorf("read the answer to an idempotency key: %w", err)
		}
		return info, nil
	}
	by := guest.Making{Key: key, Request: sum[:]}
	guest.Crash("key: taken")
	var info *api.Guest
	if e := d.madeBy(key); e == nil {
		info, err = begin(by)
	} else if !slices.Equal(e.by.Request, by.Request) {
		return nil, guest.Reused()
	} else { // the daemon died before it answered, or the index was lost
		info, err = again(e)
	}
	if err != nil {
		if ferr := d.index.Forget(context.WithoutCancel(ctx), key); ferr != nil {
			d.log.Error("give an idempotency key back", "error", ferr)
		}
		return nil, err
	}
	b, err := proto.Marshal(info)
	if err != nil {
		return nil, err
	}
	guest.Crash("key: before its answer is kept")
	if err := d.index.Remember(context.WithoutCancel(ctx), key, b); err != nil {
		return nil, indexError(err) // the guest is there: who asks again finds it by its key
	}
	guest.Crash("key: its answer kept")
	return info, nil
}

// madeBy returns the guest that a request with this key made.
func (d *Daemon) madeBy(key string) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.table {
		if e.by.Key == key {
			return e
		}
	}
	return nil
}

// earlierTask returns the task that a key has made already, nil if there is none.
// Without the index the guest's journal is asked, by its keeper if it has one.
func (d *Daemon) earlierTask(ctx context.Context, r *api.StartTaskRequest, sum [32]byte) (*api.Task, error) {
	answer, _, err := d.index.Look(ctx, r.IdempotencyKey, apiconnect.TaskServiceStartProcedure, sum)
	switch {
	case errors.Is(err, store.ErrReused):
		return nil, guest.Reused()
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err == nil && answer != nil:
		t := new(api.Task)
		if err := proto.Unmarshal(answer, t); err != nil {
			return nil, fmt.Errorf("read the answer to an idempotency key: %w", err)
		}
		if t.Guest != r.Guest { // a key of an old journal is there without its request
			return nil, guest.Reused()
		}
		if t.Spec != nil { // what was left out of the answer is the request's own
			t.Spec.Env = r.GetSpec().GetEnv()
			if len(t.Spec.Argv) == 0 {
				t.Spec.Argv = r.GetSpec().GetArgv()
			}
		}
		return t, nil
	case err != nil && !errors.Is(err, store.ErrNone):
		d.log.Error("ask the index for an idempotency key", "error", err)
	}
	e, err := d.find(r.Guest)
	if err != nil {
		return nil, nil // its own words come later
	}
	if _, k, _ := e.get(); k != nil {
		return nil, nil // it looks itself
	}
	info, hist, err := guest.Load(filepath.Join(d.guests, e.name))
	if err != nil {
		return nil, nil
	}
	made, ok := hist.Keys[r.IdempotencyKey]
	for _, t := range info.Tasks {
		switch {
		case !ok || t.Id != made.Task:
		case !made.Is(sum[:]):
			return nil, guest.Reused()
		default:
			return t, nil
		}
	}
	return nil, nil
}

// answered is the answer to a task's key, as the index keeps it: without what
// comes with the request again, which may be large, or secret. asked says that the
// command is the request's, not the image's.
func answered(key string, request []byte, asked bool, t *api.Task) store.Answered {
	brief := proto.Clone(t).(*api.Task)
	if brief.Spec != nil {
		brief.Spec.Env = nil
		if len(request) > 0 && asked {
			brief.Spec.Argv = nil
		}
	}
	b, err := proto.Marshal(brief)
	if err != nil { // only invalid UTF-8 does this, and the API refuses it
		b = nil
	}
	at := time.Now().UTC()
	if t.Created != nil {
		at = t.Created.AsTime()
	}
	return store.Answered{Key: key, Method: apiconnect.TaskServiceStartProcedure, At: at, Request: request, Answer: b}
}
