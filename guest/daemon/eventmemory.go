package daemon

import (
	"context"
	"sort"
	"sync"
	"time"
)

// memoryEvents keeps the last events of this daemon, and nothing over its end. Of
// too many the oldest goes of the guest that has the most, if it has more than own;
// else, and where own is 0, the oldest of all.
type memoryEvents struct {
	max, own int

	mu    sync.Mutex
	last  uint64
	list  []keptEvent
	whose map[string]int // how many each guest has
}

// Append implements eventLog.
func (m *memoryEvents) Append(_ context.Context, _, guest string, payload []byte) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.whose == nil {
		m.whose = map[string]int{}
	}
	m.last++
	m.list = append(m.list, keptEvent{seq: m.last, time: time.Now(), guest: guest, payload: payload})
	m.whose[guest]++
	if len(m.list) <= m.max {
		return m.last, nil
	}
	out, most := 0, m.own
	for g, n := range m.whose {
		if n > most && m.own > 0 {
			most = n
			for out = 0; m.list[out].guest != g; out++ {
			}
		}
	}
	if g := m.list[out].guest; m.whose[g] == 1 {
		delete(m.whose, g)
	} else {
		m.whose[g]--
	}
	if out == 0 {
		m.list = m.list[1:]
	} else {
		m.list = append(m.list[:out:out], m.list[out+1:]...)
	}
	return m.last, nil
}

// Events implements eventLog.
func (m *memoryEvents) Events(_ context.Context, after uint64, limit int) ([]keptEvent, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := sort.Search(len(m.list), func(i int) bool { return m.list[i].seq > after })
	return append([]keptEvent(nil), m.list[from:min(from+limit, len(m.list))]...), m.firstLocked(), nil
}

func (m *memoryEvents) firstLocked() uint64 {
	if len(m.list) == 0 {
		return m.last + 1
	}
	return m.list[0].seq
}

// Ends implements eventLog.
func (m *memoryEvents) Ends(context.Context) (first, last uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.firstLocked(), m.last, nil
}
