package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// host is a machine whose guests touch what a test says.
type host struct {
	*Daemon
	mib     int64 // of memory in all
	used    int64 // MiB, by what is no guest
	touched map[int]int64
	unknown bool
}

func newHost(t *testing.T, mib int64) *host {
	h := &host{mib: mib, touched: map[int]int64{}}
	h.Daemon = &Daemon{ctx: t.Context(), table: map[string]*entry{}, opts: Options{
		Memory: func() (int64, int64, error) {
			if h.unknown {
				return 0, 0, errors.ErrUnsupported
			}
			free := h.mib - h.used
			for _, n := range h.touched {
				free -= n
			}
			return free << 20, h.mib << 20, nil
		},
		Touched: func(pid int) int64 { return h.touched[pid] << 20 },
	}}
	return h
}

// start admits a guest that touches so much when it runs.
func (h *host) start(mib uint32, touches int64, limits policy.HostLimits) error {
	n := len(h.table) + 1
	e := newEntry(fmt.Sprint("g", n), &api.Guest{Spec: &api.GuestSpec{MemoryMib: mib}})
	released, err := h.admit(e, limits)
	if err != nil {
		return err
	}
	h.table[e.name] = e
	e.keeper, e.info.KeeperPid = &keeper{}, int32(n)
	h.touched[n] = touches
	released()
	return nil
}

func (h *host) fill(mib uint32, touches int64, limits policy.HostLimits) (n int, err error) {
	for n < 200 {
		if err = h.start(mib, touches, limits); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// What fits on which host: the numbers that docs/limits.md gives.
func TestMemoryFits(t *testing.T) {
	u := func(n uint32) *uint32 { return &n }
	for name, c := range map[string]struct {
		host, used int64
		mib        uint32
		touches    int64
		limits     policy.HostLimits
		want       int
	}{
		"a laptop of 16 GiB, idle guests":         {16 << 10, 6 << 10, 2048, 300, policy.HostLimits{}, 10},
		"the same, guests that took all":          {16 << 10, 6 << 10, 2048, 2048 + aroundMiB, policy.HostLimits{}, 4},
		"the same, large ones":                    {16 << 10, 6 << 10, 8192, 300, policy.HostLimits{}, 1},
		"a laptop of 8 GiB, nearly full":          {8 << 10, 6 << 10, 2048, 300, policy.HostLimits{}, 0},
		"the same, a small guest":                 {8 << 10, 6 << 10, 256, 100, policy.HostLimits{}, 9},
		"a floor of its own":                      {16 << 10, 6 << 10, 2048, 300, policy.HostLimits{MemoryFreeMiB: u(7 << 10)}, 2},
		"no floor":                                {8 << 10, 5 << 10, 2048, 300, policy.HostLimits{MemoryFreeMiB: u(0)}, 2},
		"the same with one":                       {8 << 10, 5 << 10, 2048, 300, policy.HostLimits{}, 1},
		"a limit of guests":                       {64 << 10, 0, 256, 100, policy.HostLimits{Guests: 7}, 7},
		"a guest that is smaller than was told":   {16 << 10, 0, 128, 4096, policy.HostLimits{}, 4},
		"a workstation of 64 GiB, 100 idle of 1G": {64 << 10, 4 << 10, 1024, 250, policy.HostLimits{}, 134},
	} {
		n, err := newHostWith(t, c.host, c.used).fill(c.mib, c.touches, c.limits)
		word := "host_memory"
		if c.limits.Guests > 0 {
			word = "too_many_guests"
		}
		if n != c.want || wordOf(err) != word {
			t.Errorf("%s: %d guests, want %d; then %v", name, n, c.want, err)
		}
	}
}

func newHostWith(t *testing.T, mib, used int64) *host {
	h := newHost(t, mib)
	h.used = used
	return h
}

// What was admitted and has not touched anything yet counts as what runs does.
func TestMemoryPromised(t *testing.T) {
	h := newHost(t, 4096)
	a, b := newEntry("a", &api.Guest{Spec: &api.GuestSpec{}}), newEntry("b", &api.Guest{Spec: &api.GuestSpec{MemoryMib: 3500}})
	h.table["a"], h.table["b"] = a, b
	released, err := h.admit(a, policy.HostLimits{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.admit(b, policy.HostLimits{})
	if wordOf(err) != "host_memory" || !strings.Contains(err.Error(), "(a 2.0 GiB)") {
		t.Fatalf("beside one that starts: %v", err)
	}
	released() // it failed
	if released, err = h.admit(b, policy.HostLimits{}); err != nil {
		t.Fatalf("the control: %v", err)
	}
	released()
	if len(h.promised) != 0 {
		t.Errorf("%d are held", len(h.promised))
	}
	// Without a word about memory only the number counts.
	h.unknown = true
	if n, err := h.fill(1<<18, 0, policy.HostLimits{Guests: 3}); n != 3 || wordOf(err) != "too_many_guests" {
		t.Errorf("%d guests on a host that says nothing: %v", n, err)
	}
}

// A refusal says what was asked for, what there is, who has it, and what helps.
func TestMemoryRefusal(t *testing.T) {
	h := newHost(t, 16<<10)
	_, err := h.fill(2048, 100, policy.HostLimits{})
	for _, part := range []string{"2.0 GiB of memory", "would have to be available", "have to stay so", "may still take", "1.9 GiB", "more)"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the refusal lacks %q: %v", part, err)
		}
	}
}

// The pool gives way to a guest that fits without it, and is left alone for one that
// would not.
func TestMemoryOfThePool(t *testing.T) {
	for name, c := range map[string]struct {
		mib  uint32
		host policy.HostLimits
		word string // of the refusal
		left int    // of the pool
	}{
		"fits beside it":         {4096, policy.HostLimits{}, "", 2},
		"without one of it":      {5900, policy.HostLimits{}, "", 1},
		"without all of it":      {6200, policy.HostLimits{}, "", 0},
		"nowhere":                {9000, policy.HostLimits{}, "host_memory", 2},
		"too many, with it":      {256, policy.HostLimits{Guests: 3}, "", 1},
		"too many, also without": {256, policy.HostLimits{Guests: 1}, "too_many_guests", 2},
	} {
		h := newHostWith(t, 8192, 1024)
		if err := h.start(256, 256, policy.HostLimits{}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := h.start(1024, 100, policy.HostLimits{}); err != nil {
				t.Fatal(err)
			}
			n := len(h.table)
			e := h.table[fmt.Sprint("g", n)]
			made := make(chan struct{})
			close(made)
			e.warm = &warm{made: made, gone: make(chan struct{}), err: errors.New("it goes"), stop: func() {
				h.mu.Lock()
				defer h.mu.Unlock()
				delete(h.table, e.name)
				delete(h.touched, n)
			}}
		}
		mine := newEntry("mine", &api.Guest{Spec: &api.GuestSpec{MemoryMib: c.mib}})
		released, err := h.admitFor(t.Context(), mine, c.host)
		if err == nil {
			released()
		}
		left := 0
		for _, e := range h.table {
			if e.warm != nil && !e.warm.taken {
				left++
			}
		}
		if wordOf(err) != c.word || left != c.left {
			t.Errorf("%s: %v, and %d of the pool are left, not %d", name, err, left, c.left)
		}
	}
}
