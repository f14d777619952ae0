package policy

import (
	"runtime"

	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of what policy.yaml may say of all guests together, and what holds
// without a word.
const (
	// MaxGuests bounds the guests of one user, whether they run or not: each is a
	// folder that every start of the daemon reads.
	MaxGuests = 1024
	maxStarts = 64
	// maxWaiting bounds the starts that wait: each holds a stream of the daemon's,
	// some 50 KiB.
	maxWaiting     = 1024
	defaultWaiting = 256
	maxMemoryFree  = hypervisor.MaxMemoryMiB
)

// HostLimits are the limits of all guests of this machine's user together. The
// zero value is what holds without a word.
type HostLimits struct {
	// Guests is how many may run at once; 0: MaxGuests.
	Guests int
	// Starts is how many boot at once; 0: as many as there are processors, and at
	// least two.
	Starts int
	// Waiting is how many starts may wait for that; nil: 256.
	Waiting *int
	// MemoryFreeMiB is how much of the host's memory has to stay available; nil:
	// a twentieth of it, at most 1 GiB.
	MemoryFreeMiB *uint32
}

// Running is how many guests may run at once.
func (h HostLimits) Running() int {
	if h.Guests == 0 {
		return MaxGuests
	}
	return h.Guests
}

// AtOnce is how many guests boot at once: a boot keeps a processor busy, and more
// of them only make each other late.
func (h HostLimits) AtOnce() int {
	if h.Starts == 0 {
		return max(2, min(runtime.NumCPU(), maxStarts))
	}
	return h.Starts
}

// Places is how many starts may wait for their turn.
func (h HostLimits) Places() int {
	if h.Waiting == nil {
		return defaultWaiting
	}
	return *h.Waiting
}

func (h HostLimits) same(o HostLimits) bool {
	return h.Guests == o.Guests && h.Starts == o.Starts && h.Places() == o.Places() && (h.Waiting == nil) == (o.Waiting == nil) &&
		(h.MemoryFreeMiB == nil) == (o.MemoryFreeMiB == nil) && (h.MemoryFreeMiB == nil || *h.MemoryFreeMiB == *o.MemoryFreeMiB)
}

// hostLimits are the keys of limits that are about all guests together.
func (r *reader) hostLimits(f *File) []field {
	h := &f.Host
	return []field{
		{"guests", func(v *yaml.Node) { h.Guests = int(r.number(v, "limits.guests", 1, MaxGuests)) }},
		{"starts", func(v *yaml.Node) { h.Starts = int(r.number(v, "limits.starts", 1, maxStarts)) }},
		{"waiting", func(v *yaml.Node) {
			n := int(r.number(v, "limits.waiting", 0, maxWaiting))
			h.Waiting = &n
		}},
		{"memory-free", func(v *yaml.Node) {
			mib := uint32(r.bytes(v, "limits.memory-free", 0, maxMemoryFree<<20) >> 20)
			h.MemoryFreeMiB = &mib
		}},
	}
}
