package daemon

import (
	"context"
	"sync"
	"time"
)

// memoryEvents keeps the last events of this daemon, and nothing over its end.
type memoryEvents struct {
	max int

	mu    sync.Mutex
	first uint64
	list  []keptEvent
}

// Append implements eventLog.
func (m *memoryEvents) Append(_ context.Context, _, _ string, payload []byte) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first == 0 {
		m.first = 1
	}
	seq := m.first + uint64(len(m.list))
	m.list = append(m.list, keptEvent{seq: seq, time: time.Now(), payload: payload})
	if len(m.list) > m.max {
		m.first++
		m.list = m.list[1:]
	}
	return seq, nil
}

// Events implements eventLog.
func (m *memoryEvents) Events(_ context.Context, after uint64, limit int) ([]keptEvent, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := max(m.first, 1)
	from := 0
	if after >= first {
		from = min(int(after-first)+1, len(m.list))
	}
	return append([]keptEvent(nil), m.list[from:min(from+limit, len(m.list))]...), first, nil
}
