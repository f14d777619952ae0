package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Bounds of what QEMU may say. QEMU is not fully trusted: it runs a hostile
// guest.
const (
	qmpMaxLine = 1 << 20          // bytes of one line
	qmpTimeout = 10 * time.Second // for one answer, when the caller's context has no bound
)

// qmp is a client of QEMU's monitor: one command at a time, events noted.
// The protocol is docs/interop/qmp-spec.rst of QEMU: each command has one answer,
// with its id, and the answers come in the order of the commands.
type qmp struct {
	conn net.Conn

	turn    chan struct{}   // held by the one who asks
	greeted chan qmpMessage // has the greeting
	done    chan struct{}   // closed when read has ended
	err     error           // why, set before done is closed

	mu    sync.Mutex
	event qmpEvents
	greet bool            // the greeting came
	asked int64           // id of the last command, from 1 on
	heard int64           // id of the last answer
	to    chan qmpMessage // for the answer to the last command; nil: nobody waits for it
}

// qmpEvents is what QEMU told by itself.
type qmpEvents struct {
	Shutdown string // the reason: "guest-reset", "guest-shutdown", "host-qmp-quit", ...
	Panicked bool
}

type qmpMessage struct {
	Greeting *struct {
		Version struct {
			Qemu struct{ Major, Minor, Micro int }
		} `json:"version"`
	} `json:"QMP"`
	ID     *int64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Reason string `json:"reason"`
	} `json:"data"`
}

// errQMP is wrapped by every breach of the protocol.
var errQMP = errors.New("qemu's monitor")

// newQMP starts reading from conn, which it owns from here on. Greet comes
// first.
func newQMP(conn net.Conn) *qmp {
	q := &qmp{conn: conn, turn: make(chan struct{}, 1), greeted: make(chan qmpMessage, 1), done: make(chan struct{})}
	go q.read()
	return q
}

// Close ends the connection and waits for the reader.
func (q *qmp) Close() {
	q.conn.Close()
	<-q.done
}

// Greet waits for QEMU's greeting and opens the monitor for commands.
func (q *qmp) Greet(ctx context.Context) (Version, error) {
	select {
	case m := <-q.greeted:
		v := m.Greeting.Version.Qemu
		_, err := q.Do(ctx, "qmp_capabilities")
		return Version{v.Major, v.Minor, v.Micro}, err
	case <-q.done:
		return Version{}, q.err
	case <-ctx.Done():
		return Version{}, context.Cause(ctx)
	}
}

// Do runs one command that takes no arguments. QEMU does it in its turn also when
// ctx ends before the answer, which is dropped then when it comes: the next command
// waits behind it, and is not taken for it.
func (q *qmp) Do(ctx context.Context, command string) (json.RawMessage, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, qmpTimeout, fmt.Errorf("%w: no answer to %s within %v", errQMP, command, qmpTimeout))
		defer cancel()
	}
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-q.done:
		return nil, q.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	answer := make(chan qmpMessage, 1)
	q.mu.Lock()
	q.asked++
	id := q.asked
	q.to = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.to = nil
	}()
	deadline, _ := ctx.Deadline()
	q.conn.SetWriteDeadline(deadline)
	if _, err := fmt.Fprintf(q.conn, "{\"execute\":%q,\"id\":%d}\n", command, id); err != nil {
		q.conn.Close() // it may have half a line
		return nil, fmt.Errorf("%w: %s: %v", errQMP, command, err)
	}
	var m qmpMessage
	select {
	case m = <-answer:
	case <-q.done:
		select {
		case m = <-answer: // its last word
		default:
			return nil, q.err
		}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if m.Error != nil {
		return nil, fmt.Errorf("%w: %s: %s", errQMP, command, Escape([]byte(m.Error.Desc), 200))
	}
	return m.Return, nil
}

// Status is QEMU's run state: "running", "paused", ...
func (q *qmp) Status(ctx context.Context) (string, error) {
	raw, err := q.Do(ctx, "query-status")
	if err != nil {
		return "", err
	}
	var s struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(raw, &s); err != nil || len(s.Status) > 64 {
		return "", fmt.Errorf("%w: query-status: no status in the answer", errQMP)
	}
	return s.Status, nil
}

// Events is what QEMU told by itself so far.
func (q *qmp) Events() qmpEvents {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.event
}

// read takes lines until the connection ends, or says what nobody asked for.
func (q *qmp) read() {
	defer close(q.done)
	defer q.conn.Close()
	r := bufio.NewReaderSize(q.conn, 4096)
	for {
		line, err := readLine(r, qmpMaxLine)
		if err != nil {
			q.err = fmt.Errorf("%w: %v", errQMP, err)
			return
		}
		m, err := parseQMP(line)
		if err == nil {
			err = q.take(m)
		}
		if err != nil {
			q.err = err
			return
		}
	}
}

// take hands a message to the one who waits for it.
func (q *qmp) take(m qmpMessage) error {
	if m.Event != "" {
		q.note(m)
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case m.Greeting != nil && !q.greet:
		q.greet = true
		q.greeted <- m
	case m.Greeting != nil:
		return fmt.Errorf("%w: a second greeting", errQMP)
	case m.ID == nil || *m.ID != q.heard+1 || *m.ID > q.asked:
		return fmt.Errorf("%w: an answer that nobody asked for", errQMP)
	default:
		q.heard++
		if q.heard == q.asked && q.to != nil {
			q.to <- m
			q.to = nil
		}
	}
	return nil
}

func (q *qmp) note(m qmpMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch m.Event {
	case "SHUTDOWN":
		q.event.Shutdown = Escape([]byte(m.Data.Reason), 64)
	case "GUEST_PANICKED", "GUEST_CRASHLOADED":
		q.event.Panicked = true
	}
}

// parseQMP reads one line: exactly one JSON object that is a greeting, an
// answer or an event.
func parseQMP(line []byte) (qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: a line that is not a message: %v", errQMP, err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return m, fmt.Errorf("%w: a message of no known kind", errQMP)
	}
	return m, nil
}

// readLine reads up to and without a newline, at most limit bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("a line of more than %d bytes", limit)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimRight(line, "\r\n"), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil, errors.New("the connection ended")
		default:
			return nil, err
		}
	}
}
