package vhostuser

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// memory is the guest's RAM as one SET_MEM_TABLE described it. It is counted:
// the server holds it while it is the current one, every chain under way holds
// it too, and the last to let go unmaps it. So a worker that is stuck in a
// slow host call never sees its slices vanish.
type memory struct {
	regions []region
	refs    atomic.Int64
}

type region struct {
	guest uint64 // guest-physical address; descriptors use these
	user  uint64 // QEMU's virtual address; SET_VRING_ADDR uses these
	ram   []byte // the region's bytes
	whole []byte // the mapping, from a page boundary on
}

func (m *memory) acquire() *memory {
	m.refs.Add(1)
	return m
}

func (m *memory) release() {
	if m.refs.Add(-1) == 0 {
		m.unmap()
	}
}

func (m *memory) unmap() {
	for _, r := range m.regions {
		// It can fail only for arguments that Mmap did not return.
		_ = unix.Munmap(r.whole)
	}
	m.regions = nil
}

// atGuest returns the n bytes at guest-physical address a, or nil when they do
// not lie wholly within one region.
func (m *memory) atGuest(a, n uint64) []byte {
	for i := range m.regions {
		if b := within(&m.regions[i], m.regions[i].guest, a, n); b != nil {
			return b
		}
	}
	return nil
}

// atUser does the same for an address of QEMU's.
func (m *memory) atUser(a, n uint64) []byte {
	for i := range m.regions {
		if b := within(&m.regions[i], m.regions[i].user, a, n); b != nil {
			return b
		}
	}
	return nil
}

func within(r *region, base, a, n uint64) []byte {
	size := uint64(len(r.ram))
	// No sum of two foreign numbers here, so nothing can overflow.
	if a < base || a-base >= size || n > size-(a-base) {
		return nil
	}
	o := a - base
	return r.ram[o : o+n : o+n]
}

// maxRAM bounds one region: 1 TiB is four times hypervisor.MaxMemoryMiB.
const maxRAM = 1 << 40

// mapMemory maps the regions of a SET_MEM_TABLE payload. The caller keeps the
// descriptors; the mapping does not need them.
func mapMemory(payload []byte, fds []int) (*memory, error) {
	n := le.Uint32(payload)
	if n == 0 || n > maxRegions || int(n) != len(fds) || len(payload) < 8+32*int(n) {
		return nil, fmt.Errorf("%d memory regions with %d file descriptors in %d bytes (1 to %d regions are possible)", n, len(fds), len(payload), maxRegions)
	}
	m := &memory{}
	for i, fd := range fds {
		p := payload[8+32*i:]
		r, err := mapRegion(fd, le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]))
		if err != nil {
			m.unmap()
			return nil, fmt.Errorf("memory region %d: %w", i, err)
		}
		m.regions = append(m.regions, r)
	}
	m.refs.Store(1)
	return m, nil
}

func mapRegion(fd int, guest, size, user, offset uint64) (region, error) {
	if size == 0 || size > maxRAM || offset > maxRAM || guest+size < guest || user+size < user {
		return region{}, fmt.Errorf("%#x bytes at guest address %#x, front end's address %#x, offset %#x make no sense", size, guest, user, offset)
	}
	if err := checkBacking(fd, offset+size); err != nil {
		return region{}, err
	}
	page := uint64(os.Getpagesize())
	lead := offset % page
	b, err := unix.Mmap(fd, int64(offset-lead), int(size+lead), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return region{}, fmt.Errorf("map %d bytes of guest memory: %w", size, err)
	}
	return region{guest: guest, user: user, ram: b[lead:], whole: b}, nil
}

// checkBacking makes sure that no access to the mapping can ever fault: the
// file is a memfd on ordinary pages (a FUSE file could stall us, huge pages can
// run out), it is large enough, and it is sealed so that it stays so.
func checkBacking(fd int, need uint64) error {
	const cure = "start qemu with its RAM in memory-backend-memfd,share=on, which seals it"
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat of guest memory: %w", err)
	}
	if uint64(st.Size) < need {
		return fmt.Errorf("guest memory file holds %d bytes, the region ends at %d", st.Size, need)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("statfs of guest memory: %w", err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("guest memory is on file system type %#x, not in a memfd (%s)", fs.Type, cure)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("seals of guest memory: %w (%s)", err, cure)
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return fmt.Errorf("guest memory is not sealed against shrinking (%s)", cure)
	}
	return nil
}
