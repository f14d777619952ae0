package vhostuser

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"
)

// fakeFiles answers every message with its bytes in reverse; those that begin with 'w' wait until they are let go.
type fakeFiles struct {
	letGo   chan struct{}
	urgent  chan string
	waiting chan struct{} // gets one for each that waits
	resets  atomic.Int32
	served  atomic.Int32
	onReset func()
}

func newFakeFiles() *fakeFiles {
	return &fakeFiles{urgent: make(chan string, 100), letGo: make(chan struct{}), waiting: make(chan struct{}, 100)}
}

func (f *fakeFiles) Reset() {
	if f.onReset != nil {
		f.onReset()
	}
	f.resets.Add(1)
}

func (f *fakeFiles) ServeSegments(readable, writable [][]byte) int {
	var in []byte
	for _, s := range readable {
		in = append(in, s...)
	}
	if len(in) > 0 && in[0] == 'w' {
		f.waiting <- struct{}{}
		<-f.letGo
	}
	f.served.Add(1)
	reverse(in)
	n := 0
	for _, s := range writable {
		n += copy(s, in[n:])
	}
	return n
}

func (f *fakeFiles) ServeUrgent(readable [][]byte) {
	var in []byte
	for _, s := range readable {
		in = append(in, s...)
	}
	f.urgent <- string(in)
}

func reverse(b []byte) {
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
}

// fsGuest is a started device with its two queues.
type fsGuest struct {
	*frontEnd
	hiprio, requests *driverQueue
	dev              *FS
	room             map[uint16]part // where each request's reply goes
}

func newFSGuest(t *testing.T, files FileServer) *fsGuest {
	t.Helper()
	d := NewFS("test", files)
	t.Cleanup(func() {
		if err := d.Close(patience); err != nil {
			t.Error(err)
		}
	})
	f := newFrontEnd(t, d, 4<<20)
	g := &fsGuest{frontEnd: f, dev: d, room: map[uint16]part{}}
	g.hiprio, g.requests = f.addQueue(16), f.addQueue(64)
	f.start()
	return g
}

// ask sends a message in two pieces, with room for as much.
func (g *fsGuest) ask(q *driverQueue, message string) uint16 {
	g.t.Helper()
	in, out := g.alloc(len(message)), g.alloc(len(message))
	copy(g.ram[in:], message)
	half := len(message) / 2
	var writable []part
	if q == g.requests {
		writable = []part{{out, 1}, {out + 1, len(message) - 1}}
	}
	head, fits := q.add([]part{{in, half}, {in + uint64(half), len(message) - half}}, writable)
	if !fits {
		g.t.Fatal("the queue is full")
	}
	g.room[head] = part{out, len(message)}
	q.kick()
	return head
}

// answer takes the next reply.
func (g *fsGuest) answer() (head uint16, reply string) {
	g.t.Helper()
	head, n := g.requests.wait()
	return head, string(g.ram[g.room[head].at:][:n])
}

func TestFSAnswers(t *testing.T) {
	files := newFakeFiles()
	g := newFSGuest(t, files)
	head := g.ask(g.requests, "message")
	if h, reply := g.answer(); h != head || reply != "egassem" {
		t.Errorf("%d %q", h, reply)
	}
	g.ask(g.hiprio, "forget")
	if m := <-files.urgent; m != "forget" {
		t.Errorf("%q", m)
	}
	if _, n := g.hiprio.wait(); n != 0 {
		t.Errorf("%d bytes were written where there is no room", n)
	}
	if n := files.resets.Load(); n == 0 {
		t.Error("the session was not started")
	}
}

// One that waits holds up nobody else, and the answers come as they are ready.
func TestFSOutOfOrder(t *testing.T) {
	files := newFakeFiles()
	g := newFSGuest(t, files)
	slow := g.ask(g.requests, "wait")
	<-files.waiting
	for range fsWorkers { // what is urgent passes those that hang, too
		g.ask(g.requests, "quick")
		g.answer()
		g.ask(g.hiprio, "forget")
		g.hiprio.wait()
	}
	for range 3 * fsWorkers {
		g.ask(g.requests, "quick")
		if _, reply := g.answer(); reply != "kciuq" {
			t.Fatalf("%q", reply)
		}
	}
	close(files.letGo)
	if h, reply := g.answer(); h != slow || reply != "tiaw" {
		t.Errorf("%d %q", h, reply)
	}
}

// No more than fsWorkers are under way, whatever the guest sends; the rest wait in the queue and are served then.
func TestFSBound(t *testing.T) {
	files := newFakeFiles()
	g := newFSGuest(t, files)
	const n = 14
	for range n {
		g.ask(g.requests, "wait")
	}
	for range fsWorkers {
		<-files.waiting
	}
	select {
	case <-files.waiting:
		t.Errorf("more than %d are under way", fsWorkers)
	case <-time.After(50 * time.Millisecond): // the absence of something cannot be waited for
	}
	close(files.letGo)
	for range n {
		if _, reply := g.answer(); reply != "tiaw" {
			t.Errorf("%q", reply)
		}
	}
}

// A pause waits for what is under way; what takes longer than the bound is answered after the pause, once.
func TestFSPause(t *testing.T) {
	files := newFakeFiles()
	g := newFSGuest(t, files)
	g.ask(g.requests, "message")
	g.answer() // so that the first session has begun
	resets := files.resets.Load()
	slow := g.ask(g.requests, "wait")
	<-files.waiting
	start := time.Now()
	g.stop()
	if took := time.Since(start); took < fsDrain || took > fsDrain+patience {
		t.Errorf("the pause took %v with a request that hangs, want about %v", took, fsDrain)
	}
	close(files.letGo)
	g.start()
	if h, reply := g.answer(); h != slow || reply != "tiaw" {
		t.Errorf("%d %q", h, reply)
	}
	g.ask(g.requests, "after")
	if _, reply := g.answer(); reply != "retfa" {
		t.Errorf("%q", reply)
	}
	if n := files.resets.Load(); n != resets {
		t.Errorf("the pause ended the session %d times", n-resets)
	}
}

// Pauses amid requests lose and double none.
func TestFSPauses(t *testing.T) {
	files := newFakeFiles()
	g := newFSGuest(t, files)
	asked := 0
	for range 20 {
		for range 8 {
			g.ask(g.requests, "message")
			asked++
		}
		g.stop()
		g.start()
		for range 8 {
			if _, reply := g.answer(); reply != "egassem" {
				t.Fatalf("%q", reply)
			}
		}
	}
	if n := files.served.Load(); int(n) != asked {
		t.Errorf("%d messages were served %d times", asked, n)
	}
}

// A driver that starts anew gets a new session before its first message is served, also when the old one hangs; QEMU is not
// held up by it.
func TestFSReset(t *testing.T) {
	files := newFakeFiles()
	var hold atomic.Pointer[chan struct{}]
	files.onReset = func() {
		if c := hold.Load(); c != nil {
			<-*c
		}
	}
	g := newFSGuest(t, files)
	g.ask(g.requests, "message")
	g.answer()
	resets := files.resets.Load()
	held := make(chan struct{})
	hold.Store(&held)
	g.reset() // comes back, although the session does not
	g.ask(g.requests, "early")
	if g.requests.interrupted(0) {
		// The interrupt of the start; an answer is not there.
		if _, _, done := g.requests.completed(); done {
			t.Error("a message was served before the session began")
		}
	}
	close(held)
	if _, reply := g.answer(); reply != "ylrae" {
		t.Errorf("%q", reply)
	}
	if n := files.resets.Load(); n == resets {
		t.Error("the session was not started over")
	}
	// And with a request of the old driver still under way.
	g.ask(g.requests, "wait")
	<-files.waiting
	g.reset()
	close(files.letGo)
	g.ask(g.requests, "fresh")
	if _, reply := g.answer(); reply != "hserf" {
		t.Errorf("an answer to the old driver reached the new: %q", reply)
	}
}

// A chain that makes no sense stops the device until the driver starts anew, and nothing else.
func TestFSBrokenQueue(t *testing.T) {
	g := newFSGuest(t, newFakeFiles())
	q := g.requests
	g.ask(q, "message")
	g.answer()
	q.setDesc(5, guestBase, 16, descNext, 5) // a loop
	q.offer(5)
	q.kick()
	g.sync()
	g.reset()
	g.ask(q, "message")
	if _, reply := g.answer(); reply != "egassem" {
		t.Errorf("%q", reply)
	}
}

// Messages of a megabyte in hundreds of pieces arrive and come back as they were.
func TestFSLarge(t *testing.T) {
	d := NewFS("test", newFakeFiles())
	f := newFrontEnd(t, d, 8<<20)
	f.addQueue(16)
	q := f.addQueue(1024)
	f.start()
	data := make([]byte, 1<<20+1234)
	chacha := rand.NewChaCha8([32]byte{2})
	_, _ = chacha.Read(data)
	data[0] = 'x'
	in, out := f.alloc(len(data)), f.alloc(len(data))
	copy(f.ram[in:], data)
	cut := func(at uint64) (ps []part) {
		for off := 0; off < len(data); off += 4000 {
			ps = append(ps, part{at + uint64(off), min(4000, len(data)-off)})
		}
		return ps
	}
	if _, fits := q.add(cut(in), cut(out)); !fits {
		t.Fatal("the queue is full")
	}
	q.kick()
	if _, n := q.wait(); int(n) != len(data) {
		t.Fatalf("%d bytes of %d", n, len(data))
	}
	got := bytes.Clone(f.ram[out:][:len(data)])
	reverse(got)
	if sha256.Sum256(got) != sha256.Sum256(data) {
		t.Error("other bytes came back")
	}
}

// QEMU's death ends Serve, also with a request under way, and Close says if one is left behind.
func TestFSFrontEndDies(t *testing.T) {
	files := newFakeFiles()
	d := NewFS("test", files)
	f := newFrontEnd(t, d, 1<<20)
	f.addQueue(16)
	g := &fsGuest{frontEnd: f, dev: d, room: map[uint16]part{}, hiprio: f.queues[0], requests: f.addQueue(64)}
	f.start()
	g.ask(g.requests, "wait")
	<-files.waiting
	f.conn.Close()
	_ = f.wait()
	if err := d.Close(time.Millisecond); err == nil {
		t.Error("Close says nothing of a request that hangs")
	}
	close(files.letGo)
	if err := d.Close(patience); err != nil {
		t.Error(err)
	}
}
