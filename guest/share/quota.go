package share

import "sync"

// quota bounds what a guest can add to the host's disk. It counts net growth since the share was opened: a file's growth in
// length (so that a sparse length counts in full) or, where the length stays, in allocated blocks (so that a filled hole
// counts too); entries as created less removed. Lost length and removed entries are given back, never below zero. Two
// things follow: deleting the host's own files earns a guest their length and no more, and punching holes earns nothing.
// The floor under the host's free space holds whatever the account says.
//
// A write inside a file's present length is let through before its blocks are known, so the bytes can pass the limit by
// MaxWrite per request that is under way.
type quota struct {
	mu                   sync.Mutex
	bytes, maxBytes      uint64
	entries, maxEntries  uint64
	minFree, sinceLooked uint64
	free                 func() (uint64, error) // bytes that the host's file system still has for us
}

// lookEvery is after how many bytes of growth the host's free space is looked at again.
const lookEvery = 16 << 20

// reserve takes n bytes of the account before they are written.
func (q *quota) reserve(n uint64) errno {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n > q.maxBytes || q.bytes > q.maxBytes-n || q.bytes >= q.maxBytes {
		return eNOSPC
	}
	q.sinceLooked += n
	if q.minFree > 0 && q.sinceLooked >= lookEvery {
		free, err := q.free()
		if err != nil {
			return eIO
		}
		if free < q.minFree || free-q.minFree < n {
			return eNOSPC
		}
		q.sinceLooked = 0
	}
	q.bytes += n
	return ok
}

// settle replaces a reservation with what the change really was.
func (q *quota) settle(reserved uint64, before, after *stat) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= min(q.bytes, reserved)
	switch {
	case after.size > before.size:
		q.bytes += after.size - before.size
	case after.size < before.size:
		q.bytes -= min(q.bytes, before.size-after.size)
	case after.blocks > before.blocks:
		q.bytes += (after.blocks - before.blocks) * 512
		q.sinceLooked += (after.blocks - before.blocks) * 512
	}
}

// refund gives n bytes back.
func (q *quota) refund(n uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= min(q.bytes, n)
}

// create takes one entry.
func (q *quota) create() errno {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.entries >= q.maxEntries {
		return eNOSPC
	}
	q.entries++
	return ok
}

// uncreate gives one back.
func (q *quota) uncreate() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.entries > 0 {
		q.entries--
	}
}

// left tells STATFS what the guest may still add.
func (q *quota) left() (bytes, entries uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.maxBytes - min(q.bytes, q.maxBytes), q.maxEntries - min(q.entries, q.maxEntries)
}
