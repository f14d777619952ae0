package policy

import (
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

// MaxPool is how many guests may be kept warm. Each takes the memory of a guest
// that runs and does nothing.
const MaxPool = 32

// Pool says how many guests are started before anybody asks for one, and what
// they are made of: all that cannot be changed once a guest runs.
type Pool struct {
	Size     int
	Image    string
	Boundary string
	CPUs     uint32
	// MemoryMiB and DiskMiB are 0 if the file does not say; NoDisk says that it
	// says none.
	MemoryMiB, DiskMiB uint32
	NoDisk             bool
}

// Spec is what a guest of the pool is asked for as: no folder, no rule, no
// secret, nothing that is anybody's. Without a word about the disk it has that
// of a guest with a folder in review, as carrel run makes it.
func (p Pool) Spec(name string) *api.GuestSpec {
	s := &api.GuestSpec{Name: name, Image: p.Image, Boundary: p.Boundary, Cpus: p.CPUs, MemoryMib: p.MemoryMiB, DiskMib: p.DiskMiB, Ephemeral: true}
	if s.DiskMib == 0 && !p.NoDisk && p.Boundary != "gvisor" {
		s.DiskMib = DefaultDiskMiB
	}
	return s
}

// pool is about guests that are started before anybody asks.
func (r *reader) pool(n *yaml.Node, f *File) {
	p := &f.Pool
	r.mapping(n, "pool",
		field{"size", func(v *yaml.Node) { p.Size = int(r.number(v, "pool.size", 0, MaxPool)) }},
		field{"image", func(v *yaml.Node) {
			if p.Image = r.text(v, "pool.image"); p.Image != "" && !hypervisor.ValidName(p.Image) && !ValidReference(p.Image) {
				r.problem(v, "pool.image %q is not possible (lower-case letters, digits and dashes, or a reference such as python:3.13)", clip(p.Image))
			}
		}},
		field{"boundary", func(v *yaml.Node) {
			if p.Boundary = r.text(v, "pool.boundary"); p.Boundary != "" && !slices.Contains(boundaries, p.Boundary) {
				r.problem(v, "pool.boundary is one of %s, not %q", strings.Join(boundaries, ", "), clip(p.Boundary))
			}
		}},
		field{"cpus", func(v *yaml.Node) { p.CPUs = uint32(r.number(v, "pool.cpus", 1, hypervisor.MaxCPUs)) }},
		field{"memory", func(v *yaml.Node) {
			p.MemoryMiB = uint32(r.bytes(v, "pool.memory", hypervisor.MinMemoryMiB<<20, hypervisor.MaxMemoryMiB<<20) >> 20)
		}},
		field{"disk", func(v *yaml.Node) {
			p.DiskMiB = uint32(r.bytes(v, "pool.disk", 0, maxDiskMiB<<20) >> 20)
			p.NoDisk = p.DiskMiB == 0
		}})
}
