package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/dustin/go-humanize"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
)

// A guest is started if the host has the memory for it, before anything of it is
// made. What a guest was given is a promise, of which it has touched a part; that
// part is no longer available on the host. Of what is left of all promises, with
// the new guest's,
//
//	the largest counts whole          any one guest may take all that it has,
//	a quarter counts of the others    while the others, which mostly wait for
//	                                  somebody, take that much more together,
//
// and that, with what runs around a new guest, must be available beside what has
// to stay available for everything else. So ten guests of 2 GiB that do little fit
// on a host of 16 GiB of which 10 are available, and two of 8 GiB that each may
// take all at once do not.
const (
	// overcommit is the part of the others' promises that counts: one in so many.
	overcommit = 4
	// aroundMiB is what a new guest's processes take beside its memory: keeper and
	// hypervisor (overhead_idle in docs/specification.md: 131 MB), its egress
	// process and its shares'.
	aroundMiB = 160
)

// promise is what a guest may still touch of its memory, in bytes.
type promise struct {
	guest string
	rest  int64
}

// promisedOf is how much of promises counts.
func promisedOf(all []promise) int64 {
	var most, sum int64
	for _, p := range all {
		most, sum = max(most, p.rest), sum+p.rest
	}
	return most + (sum-most)/overcommit
}

// admit promises a guest its memory, or refuses it: where the host does not say
// how much it has, only by the number of guests. The caller calls released when
// the guest runs or has failed: one that runs is counted by its keeper.
func (d *Daemon) admit(e *entry, host policy.HostLimits) (released func(), err error) {
	d.admitting.Lock()
	defer d.admitting.Unlock()
	info, _, _ := e.get()
	mine := promise{e.name, memoryOf(info.GetSpec())}
	if err := d.refuses(mine, d.promises(e, nil), 0, host); err != nil {
		return nil, err
	}
	if d.promised == nil {
		d.promised = map[*entry]bool{}
	}
	d.promised[e] = true
	return func() {
		d.admitting.Lock()
		defer d.admitting.Unlock()
		delete(d.promised, e)
	}, nil
}

// refuses says why a guest gets no memory beside what is held, where so many bytes
// more than now would be available.
func (d *Daemon) refuses(mine promise, held []promise, more int64, host policy.HostLimits) error {
	if n := len(held); n >= host.Running() {
		return api.NewError(connect.CodeResourceExhausted, "too_many_guests", fmt.Sprintf("start guest %s: %s, which is as many as may", mine.guest, guestsRun(n)),
			"stop one (carrel ls), or raise limits.guests in policy.yaml")
	}
	available, total, err := d.opts.memory()
	if err != nil {
		return nil
	}
	floor := place.Floor(total)
	if host.MemoryFreeMiB != nil {
		floor = int64(*host.MemoryFreeMiB) << 20
	}
	if need := aroundMiB<<20 + promisedOf(append(held, mine)); need > available+more-floor {
		return noMemory(mine, held, need, available, floor)
	}
	return nil
}

func guestsRun(n int) string {
	if n == 1 {
		return "1 guest runs or starts"
	}
	return fmt.Sprintf("%d guests run or start", n)
}

// promises are those of all guests but one, and without others: of those that run,
// and of those that were admitted and start.
func (d *Daemon) promises(but *entry, without map[*entry]bool) (held []promise) {
	for _, e := range d.everyEntry() {
		info, k, _ := e.get()
		if e == but || without[e] || k == nil && !d.promised[e] {
			continue
		}
		rest := memoryOf(info.GetSpec())
		if pid := info.GetKeeperPid(); k != nil && pid > 0 {
			rest -= min(rest, d.opts.touched(int(pid)))
		}
		held = append(held, promise{e.name, rest})
	}
	return held
}

// memoryOf is how much memory a guest may have, in bytes.
func memoryOf(spec *api.GuestSpec) int64 {
	return int64(cmp.Or(spec.GetMemoryMib(), policy.DefaultMemoryMiB)) << 20
}

// noMemory says what was asked for, what there is, and who has the rest.
func noMemory(mine promise, held []promise, need, available, floor int64) error {
	size := func(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
	cause := fmt.Sprintf("start guest %s: with %s of memory and what runs around it %s would have to be available on this machine, beside %s that have to stay so; %s are",
		mine.guest, size(mine.rest), size(need), size(floor), size(available))
	if len(held) > 0 {
		slices.SortFunc(held, func(a, b promise) int {
			return cmp.Or(cmp.Compare(b.rest, a.rest), strings.Compare(a.guest, b.guest))
		})
		var sum int64
		var names []string
		for i, p := range held {
			if sum += p.rest; i < 3 {
				names = append(names, p.guest+" "+size(p.rest))
			}
		}
		if more := len(held) - len(names); more > 0 {
			names = append(names, fmt.Sprintf("%d more", more))
		}
		cause += fmt.Sprintf("; guests that run may still take %s (%s)", size(sum), strings.Join(names, ", "))
	}
	return api.NewError(connect.CodeResourceExhausted, "host_memory", cause, "stop a guest (carrel ls), ask for less with --memory, or close other programs; limits.memory-free in policy.yaml says how much has to stay available")
}

// admitFor is admit for a request: it gives guests of the pool up, one after the
// other, before it refuses somebody's. Where all of them would not be enough it gives
// up none: they would only be started again.
func (d *Daemon) admitFor(ctx context.Context, e *entry, host policy.HostLimits) (released func(), err error) {
	for {
		released, err = d.admit(e, host)
		if err == nil {
			return released, nil
		}
		if !d.wouldFit(e, host) {
			return nil, err
		}
		w := d.giveOneUp()
		if w == nil {
			return nil, err
		}
		select {
		case <-w.gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// wouldFit says whether a guest would be admitted without the pool. What is not known
// is taken for the best.
func (d *Daemon) wouldFit(e *entry, host policy.HostLimits) bool {
	d.admitting.Lock()
	defer d.admitting.Unlock()
	pool := map[*entry]bool{}
	d.mu.Lock()
	for _, x := range d.table {
		if w := x.warm; w != nil && (!w.taken || w.left) {
			pool[x] = true
		}
	}
	d.mu.Unlock()
	var more int64
	for x := range pool {
		info, k, _ := x.get()
		if k == nil {
			continue
		}
		more += aroundMiB << 20
		if n := d.opts.touched(int(info.GetKeeperPid())); n > 0 {
			more += n
		} else {
			more += memoryOf(info.GetSpec())
		}
	}
	info, _, _ := e.get()
	return d.refuses(promise{e.name, memoryOf(info.GetSpec())}, d.promises(e, pool), more, host) == nil
}

// giveOneUp begins to give a guest of the pool up that is nobody's; nil: there is
// none.
func (d *Daemon) giveOneUp() *warm {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.table {
		if w := e.warm; w != nil && !w.taken {
			w.taken, w.left = true, true
			d.owned.Go(func() { d.giveUp(e) })
			return w
		}
	}
	return nil
}

func (o *Options) memory() (available, total int64, err error) {
	if o.Memory != nil {
		return o.Memory()
	}
	return place.Memory()
}

func (o *Options) touched(pid int) int64 {
	if o.Touched != nil {
		return o.Touched(pid)
	}
	return place.Touched(pid)
}
