//go:build unix

package agent

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// maxGrace bounds how long PowerOff waits for tasks.
const maxGrace = time.Minute

// lastWords bounds how long PowerOff waits for the host to read the ends of
// tasks.
const lastWords = 2 * time.Second

// endTasks asks every task to end, and after grace ends those that have not.
func (a *Agent) endTasks(ctx context.Context, grace time.Duration) {
	a.mu.Lock()
	a.ending = true
	running := make([]*task, 0, len(a.tasks))
	for t := range a.tasks {
		running = append(running, t)
	}
	a.mu.Unlock()
	for _, t := range running {
		_ = t.proc.signalGroup(unix.SIGTERM)
	}
	late, cancel := context.WithTimeout(ctx, min(max(grace, 0), maxGrace))
	for _, t := range running {
		waitFor(late, t.proc.done)
	}
	cancel()
	a.killAll()
	late, cancel = context.WithTimeout(ctx, lastWords)
	defer cancel()
	for _, t := range running {
		waitFor(late, t.told)
	}
}

// waitFor returns when done is closed or ctx ends.
func waitFor(ctx context.Context, done <-chan struct{}) {
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// killAll ends every task and lets no new one start.
func (a *Agent) killAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ending = true
	for t := range a.tasks {
		t.kill()
	}
}
