package vhostuser

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guest is a vsock driver and its streams, on top of frontEnd. It does what
// Linux does where that matters: buffers of 3776 bytes, at most its own
// buffer size under way, credit told late.
type guest struct {
	*frontEnd
	d      *Vsock
	rx, tx *driverQueue
	window uint32
	bufs   []uint64 // by descriptor of rx
	slots  []uint64 // free buffers for packets to the host
	slotOf map[uint16]uint64

	mu        sync.Mutex
	room      sync.Cond // a slot is free, or the end
	streams   map[ports]*guestStream
	listeners map[uint32]func(*guestStream)
	nextPort  uint32
	deaf      bool // takes no packets and posts no buffers
	ended     bool
	resets    map[ports]int // resets from the host, by stream
	packets   chan packet   // nil, or gets every header that arrives
	wg        sync.WaitGroup
	stopFD    int
}

const (
	guestCID    = 7
	rxBufSize   = 3776
	guestWindow = 256 << 10
)

func newVsockGuest(t testing.TB) *guest {
	g := newStoppedGuest(t)
	g.boot()
	return g
}

// newStoppedGuest has a device, but its driver is not up yet.
func newStoppedGuest(t testing.TB) *guest {
	t.Helper()
	d := NewVsock(guestCID)
	g := &guest{d: d, window: guestWindow, streams: map[ports]*guestStream{}, listeners: map[uint32]func(*guestStream){}, nextPort: 5000, slotOf: map[uint16]uint64{}, resets: map[ports]int{}}
	g.room.L = &g.mu
	g.frontEnd = newFrontEnd(t, d, 8<<20)
	g.rx, g.tx = g.addQueue(256), g.addQueue(128)
	for range g.rx.size {
		g.bufs = append(g.bufs, g.alloc(rxBufSize))
	}
	for range 48 {
		g.slots = append(g.slots, g.alloc(vsockHeader+maxVsockData))
	}
	var err error
	if g.stopFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.mu.Lock()
		g.ended = true
		g.failAll()
		g.mu.Unlock()
		unix.Write(g.stopFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		g.d.Close()
		g.wg.Wait()
		unix.Close(g.stopFD)
	})
	return g
}

func (g *guest) boot() {
	g.post()
	g.start()
	g.wg.Go(g.loop)
}

// post makes every free rx descriptor available.
func (g *guest) post() {
	for len(g.rx.free) > 0 {
		id := g.rx.free[len(g.rx.free)-1]
		g.rx.add(nil, []part{{g.bufs[id], rxBufSize}})
	}
}

// reboot is a guest that starts anew: it knows none of its streams.
func (g *guest) reboot() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frontEnd.stop()
	g.failAll()
	for _, at := range g.slotOf {
		g.slots = append(g.slots, at)
	}
	clear(g.slotOf)
	for _, q := range g.queues {
		q.clear()
	}
	g.post()
	g.frontEnd.start()
}

func (g *guest) failAll() {
	for p, s := range g.streams {
		s.err = syscall.ECONNRESET
		s.cond.Broadcast()
		delete(g.streams, p)
	}
	g.room.Broadcast()
}

// loop takes what the host sends until the test ends.
func (g *guest) loop() {
	for {
		p := []unix.PollFd{{Fd: int32(g.rx.callFD), Events: unix.POLLIN}, {Fd: int32(g.tx.callFD), Events: unix.POLLIN}, {Fd: int32(g.stopFD), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
			panic(err)
		}
		var b [8]byte
		unix.Read(g.rx.callFD, b[:])
		unix.Read(g.tx.callFD, b[:])
		g.mu.Lock()
		if g.ended {
			g.mu.Unlock()
			return
		}
		g.take()
		g.mu.Unlock()
	}
}

func (g *guest) setDeaf(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.deaf = on
	g.take()
}

// take deals with completions of both queues; g.mu is held.
func (g *guest) take() {
	for {
		head, _, ok := g.tx.completed()
		if !ok {
			break
		}
		g.slots = append(g.slots, g.slotOf[head])
		delete(g.slotOf, head)
		g.room.Broadcast()
	}
	if g.deaf {
		return
	}
	for {
		head, n, ok := g.rx.completed()
		if !ok {
			break
		}
		b := g.ram[g.bufs[head] : g.bufs[head]+uint64(n)]
		if len(b) < vsockHeader {
			g.t.Errorf("the host wrote %d bytes", len(b))
			continue
		}
		g.fromHost(b)
	}
	g.post()
	g.rx.kick()
}

// fromHost deals with one packet of the host's.
func (g *guest) fromHost(b []byte) {
	p := parseFromHost(b)
	data := b[vsockHeader:]
	if p.source != hostCID || p.dest != guestCID || p.kind != typeStream || int(p.size) != len(data) || p.size > 0 && p.op != opData {
		g.t.Errorf("the host sent %+v with %d bytes", p, len(data))
	}
	if g.packets != nil {
		select {
		case g.packets <- p:
		default:
		}
	}
	s := g.streams[p.ports]
	if p.op == opReset {
		g.resets[p.ports]++
	}
	if s == nil {
		if f := g.listeners[p.guest]; f != nil && p.op == opRequest {
			s = g.newStream(p.ports)
			s.hostWindow, s.hostTaken, s.open = p.window, p.taken, true
			g.wg.Go(func() {
				s.control(opResponse, 0)
				f(s)
			})
		} else if p.op != opReset {
			g.wg.Go(func() { g.sendRaw(packet{ports: p.ports, op: opReset}, nil) })
		}
		return
	}
	s.hostWindow, s.hostTaken = p.window, p.taken
	switch p.op {
	case opResponse:
		s.open = true
	case opReset:
		s.err = syscall.ECONNRESET
		delete(g.streams, p.ports)
	case opShutdown:
		s.hostShut |= p.flags
		if s.hostShut == shutBoth && len(s.in) == 0 {
			s.over()
		}
	case opData:
		if s.hostShut&shutSend != 0 {
			g.t.Error("the host sent data after its shutdown")
		}
		if len(s.in)+len(data) > int(s.window) {
			g.t.Error("the host sent more than it may")
		}
		s.in = append(s.in, data...)
	}
	s.cond.Broadcast()
}

func parseFromHost(b []byte) packet {
	var h [vsockHeader]byte
	copy(h[:], b)
	p := parsePacket(&h)
	p.guest, p.host = p.host, p.guest
	return p
}

// sendRaw puts one packet into the tx queue; it waits for a free slot.
func (g *guest) sendRaw(p packet, data []byte) {
	p.source, p.dest, p.kind, p.size = guestCID, hostCID, typeStream, uint32(len(data))
	g.sendPacket(p, data)
}

// sendPacket sends p as it is, with whatever lies it holds.
func (g *guest) sendPacket(p packet, data []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.slots) == 0 && !g.ended {
		g.room.Wait()
	}
	if g.ended {
		return
	}
	at := g.slots[len(g.slots)-1]
	g.slots = g.slots[:len(g.slots)-1]
	var h [vsockHeader]byte
	host := p.ports
	p.guest, p.host = host.host, host.guest // putPacket writes the host's direction
	putPacket(&h, p)
	copy(g.ram[at:], h[:])
	copy(g.ram[at+vsockHeader:], data)
	parts := []part{{at, vsockHeader}}
	if len(data) > 0 {
		parts = append(parts, part{at + vsockHeader, len(data)})
	}
	head, ok := g.tx.add(parts, nil)
	if !ok {
		g.t.Error("no descriptors left for a packet")
		return
	}
	g.slotOf[head] = at
	g.tx.kick()
}

// guestStream is one stream as the guest has it.
type guestStream struct {
	g *guest
	ports
	window uint32

	cond                        sync.Cond // on g.mu, as all below
	in                          []byte
	open                        bool
	err                         error
	taken, told                 uint32
	sent, hostTaken, hostWindow uint32
	hostShut                    uint32
	closed                      bool
}

func (g *guest) newStream(p ports) *guestStream {
	s := &guestStream{g: g, ports: p, window: g.window}
	s.cond.L = &g.mu
	g.streams[p] = s
	return s
}

func (g *guest) listen(port uint32, f func(*guestStream)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listeners[port] = f
}

// dial opens a stream to a port of the host.
func (g *guest) dial(port uint32) (*guestStream, error) {
	g.mu.Lock()
	g.nextPort++
	s := g.newStream(ports{host: port, guest: g.nextPort})
	g.mu.Unlock()
	s.control(opRequest, 0)
	late := time.AfterFunc(patience, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		s.err = errors.Join(s.err, errors.New("the host does not answer"))
		s.cond.Broadcast()
	})
	defer late.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !s.open && s.err == nil {
		s.cond.Wait()
	}
	if s.open {
		return s, nil
	}
	return s, s.err
}

// over is a stream that both sides have shut: Linux resets it.
func (s *guestStream) over() {
	delete(s.g.streams, s.ports)
	s.g.wg.Go(func() { s.g.sendRaw(packet{ports: s.ports, op: opReset}, nil) })
	if s.err == nil {
		s.err = syscall.EPIPE
	}
	s.cond.Broadcast()
}

func (s *guestStream) header(op uint16, flags uint32) packet {
	s.told = s.taken
	return packet{ports: s.ports, op: op, flags: flags, window: s.window, taken: s.taken}
}

func (s *guestStream) control(op uint16, flags uint32) {
	s.g.mu.Lock()
	h := s.header(op, flags)
	s.g.mu.Unlock()
	s.g.sendRaw(h, nil)
}

func (s *guestStream) Read(p []byte) (int, error) {
	s.g.mu.Lock()
	for len(s.in) == 0 {
		switch {
		case s.hostShut&shutSend != 0:
			s.g.mu.Unlock()
			return 0, io.EOF
		case s.err != nil:
			s.g.mu.Unlock()
			return 0, s.err
		}
		s.cond.Wait()
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	s.taken += uint32(n)
	tell := s.taken-s.told >= s.window/2
	if s.hostShut == shutBoth && len(s.in) == 0 && s.g.streams[s.ports] == s {
		s.over()
		tell = false
	}
	s.g.mu.Unlock()
	if tell {
		s.control(opCreditUpdate, 0)
	}
	return n, nil
}

func (s *guestStream) Write(p []byte) (done int, err error) {
	for done < len(p) {
		s.g.mu.Lock()
		var n int
		for {
			if s.err != nil || s.hostShut&shutReceive != 0 || s.closed {
				s.g.mu.Unlock()
				return done, errors.Join(syscall.EPIPE, s.err)
			}
			// The smaller of both windows, as in Linux: the credit trap.
			if room := int(min(s.hostWindow, s.window)) - int(s.sent-s.hostTaken); room > 0 {
				n = min(room, len(p)-done, maxVsockData)
				break
			}
			s.cond.Wait()
		}
		s.sent += uint32(n)
		h := s.header(opData, 0)
		s.g.mu.Unlock()
		s.g.sendRaw(h, p[done:done+n])
		done += n
	}
	return done, nil
}

func (s *guestStream) CloseWrite() error {
	s.control(opShutdown, shutSend)
	return nil
}

func (s *guestStream) Close() error {
	s.g.mu.Lock()
	alive := s.g.streams[s.ports] == s && !s.closed
	s.closed = true
	h := s.header(opShutdown, shutBoth)
	s.g.mu.Unlock()
	if alive {
		s.g.sendRaw(h, nil)
	}
	return nil
}

// echoStream sends everything back and shuts its side in the end.
func echoStream(s *guestStream) {
	io.Copy(s, s)
	s.CloseWrite()
}

// testContext ends with the test, and in any case in time.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for something that no message announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}
