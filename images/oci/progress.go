package oci

import (
	"sync"
	"time"
)

// meter counts the bytes of one step and reports them, from any goroutine, one call at a time.
type meter struct {
	report func(Progress)

	mu   sync.Mutex
	p    Progress
	last time.Time
}

// reportEvery keeps a report of every kilobyte from costing more than the bytes.
const reportEvery = 50 * time.Millisecond

func newMeter(step string, total int64, report func(Progress)) *meter {
	if report == nil {
		report = func(Progress) {}
	}
	m := &meter{report: report, p: Progress{Step: step, Total: total}}
	m.report(m.p)
	return m
}

// add counts n more bytes; a download that starts again takes its own back.
func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Done += n
	m.tellLocked()
}

func (m *meter) set(done int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Done = done
	m.tellLocked()
}

func (m *meter) tellLocked() {
	if now := time.Now(); now.Sub(m.last) >= reportEvery {
		m.last = now
		m.report(m.p)
	}
}

// end reports where it stands, whenever the last report was.
func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report(m.p)
}
