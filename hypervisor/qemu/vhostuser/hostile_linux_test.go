package vhostuser

import (
	"context"
	"errors"
	"io"
	"math/rand"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Rings that make no sense stop their queue, and only until the driver sets
// it up anew.
func TestBrokenRings(t *testing.T) {
	const size = 8
	good := func(q *driverQueue) { q.setDesc(0, guestBase, 16, 0, 0) }
	for _, c := range []struct {
		name  string
		spoil func(q *driverQueue)
		want  string
	}{
		{"none", good, ""},
		{"longest chain", func(q *driverQueue) {
			for i := range size {
				q.setDesc(i, guestBase, 16, descNext, uint16(i+1))
			}
			q.setDesc(size-1, guestBase, 16, 0, 0)
		}, ""},
		{"empty descriptor anywhere", func(q *driverQueue) { q.setDesc(0, 1, 0, 0, 0) }, ""},
		{"last byte of memory", func(q *driverQueue) { q.setDesc(0, guestBase+uint64(len(q.f.ram))-1, 1, 0, 0) }, ""},
		{"loop", func(q *driverQueue) {
			q.setDesc(0, guestBase, 16, descNext, 1)
			q.setDesc(1, guestBase, 16, descNext, 0)
		}, "the chain's number 8"},
		{"next out of range", func(q *driverQueue) { q.setDesc(0, guestBase, 16, descNext, size) }, "descriptor 8"},
		{"head out of range", func(q *driverQueue) {
			le.PutUint16(q.f.ram[q.avail+4:], 0xffff)
		}, "descriptor 65535"},
		{"index jumps", func(q *driverQueue) { good(q); q.availIdx += size }, "9 chains offered"},
		{"index goes back", func(q *driverQueue) { good(q); q.availIdx -= 2 }, "65535 chains offered"},
		{"indirect", func(q *driverQueue) { q.setDesc(0, guestBase, 16, 4, 0) }, "flags 0x4"},
		{"unknown flag", func(q *driverQueue) { q.setDesc(0, guestBase, 16, 0x8000, 0) }, "flags 0x8000"},
		{"readable after writable", func(q *driverQueue) {
			q.setDesc(0, guestBase, 16, descNext|descWrite, 1)
			q.setDesc(1, guestBase, 16, 0, 0)
		}, "after a writable"},
		{"below memory", func(q *driverQueue) { q.setDesc(0, guestBase-1, 16, 0, 0) }, "are not memory"},
		{"past memory", func(q *driverQueue) { q.setDesc(0, guestBase+uint64(len(q.f.ram))-15, 16, 0, 0) }, "are not memory"},
		{"address wraps", func(q *driverQueue) { q.setDesc(0, ^uint64(0)-7, 16, 0, 0) }, "are not memory"},
		{"front end's address", func(q *driverQueue) { q.setDesc(0, userBase, 16, 0, 0) }, "are not memory"},
		{"longer than any request", func(q *driverQueue) { q.setDesc(0, guestBase, 1<<32-1, 0, 0) }, "more than"},
		{"long in sum", func(q *driverQueue) {
			for i := range 5 {
				q.setDesc(i, guestBase, 1<<20, descNext, uint16(i+1))
			}
			q.setDesc(5, guestBase, 1, 0, 0)
		}, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEcho(1)
			f := newFrontEnd(t, e, 1<<21)
			q := f.addQueue(size)
			f.start()
			q.availIdx++ // head 0 is in the ring already
			c.spoil(q)
			q.setAvail(0, q.availIdx)
			q.kick()
			if c.want == "" {
				q.chain[0] = 1
				q.wait()
			} else {
				e.wait(t)
				e.mu.Lock()
				if err := errors.Join(e.errs...); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want %q", err, c.want)
				}
				e.mu.Unlock()
				// A pause does not mend it, a driver that starts anew does.
				f.stop()
				f.start()
			}
			f.reset()
			roundTrip(t, q, "a good chain")
		})
	}
}

// A guest can offer the same chain again and again, but never has more under
// way than fit into the ring.
func TestChainsUnderWayAreBounded(t *testing.T) {
	const size = 4
	e := newEcho(1)
	e.hold = true
	f := newFrontEnd(t, e, 1<<20)
	q := f.addQueue(size)
	f.start()
	q.setDesc(0, guestBase, 16, 0, 0)
	for range size {
		q.offer(0)
		q.kick()
		e.wait(t)
	}
	q.offer(0)
	q.kick()
	e.wait(t)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.held) != size || len(e.errs) != 1 || !errors.Is(e.errs[0], ErrBroken) {
		t.Errorf("%d chains under way, errors %v", len(e.held), e.errs)
	}
}

// Memory stays mapped while a chain is under way, whatever the front end does.
func TestMemoryOutlivesTheConnection(t *testing.T) {
	e := newEcho(1)
	e.hold = true
	f := newFrontEnd(t, e, 1<<20)
	q := f.addQueue(4)
	f.start()
	at := f.alloc(16)
	q.add([]part{{at, 16}}, nil)
	q.kick()
	e.wait(t)
	f.sendMemory() // a new table, and then the end
	f.sync()
	f.conn.Close()
	f.wait()
	c := e.held[0]
	copy(f.ram[at:], "still the guest's")
	if got := string(c.Readable[0]); got != "still the guest'" {
		t.Errorf("the chain holds %q", got)
	}
	m := c.mem
	e.queue.Push(c, 0)
	if m.regions != nil {
		t.Error("the memory is still mapped after the last chain")
	}
	e.queue.Push(c, 0) // nothing happens
}

// Messages that make no sense end the connection with an error that names
// them, and never the process.
func TestHostileFrontEnd(t *testing.T) {
	long := make([]byte, maxPayload+1)
	table := func(regions uint32, words ...uint64) []byte {
		p := pair(regions, 0)
		for _, w := range words {
			p = le.AppendUint64(p, w)
		}
		return p
	}
	for _, c := range []struct {
		name string
		do   func(f *frontEnd)
		want string // of the error; "" means that all is well
	}{
		{"orderly", func(f *frontEnd) { f.start() }, ""},
		{"reset messages", func(f *frontEnd) { f.send(reqResetOwner, nil); f.send(reqResetDevice, nil); f.start() }, ""},
		{"new memory while it runs", func(f *frontEnd) { f.start(); f.sendMemory(); f.sync() }, ""},
		{"half a header", func(f *frontEnd) { f.conn.Write([]byte{1, 2, 3}) }, "unexpected EOF"},
		{"header without payload", func(f *frontEnd) { f.conn.Write(append(pair(2, 1), 8, 0, 0, 0)) }, "SET_FEATURES: unexpected EOF"},
		{"version 2", func(f *frontEnd) { f.conn.Write(append(pair(1, 2), 0, 0, 0, 0)) }, "flags 0x2"},
		{"a reply", func(f *frontEnd) { f.conn.Write(append(pair(1, 5), 0, 0, 0, 0)) }, "flags 0x5"},
		{"4 GiB of payload", func(f *frontEnd) { f.conn.Write(append(pair(1, 1), 255, 255, 255, 255)) }, "4294967295 bytes"},
		{"payload too long", func(f *frontEnd) { f.send(reqSetFeatures, long) }, "at most"},
		{"payload too short", func(f *frontEnd) { f.send(reqSetVringAddr, u64(0)) }, "want 40"},
		{"unknown request", func(f *frontEnd) { f.send(77, nil) }, "request 77"},
		{"feature not offered", func(f *frontEnd) { f.send(reqSetFeatures, u64(1<<29|1<<30|1<<32)) }, "0x20000000 were not offered"},
		{"legacy driver", func(f *frontEnd) { f.send(reqSetFeatures, u64(1<<30)) }, "force-legacy=false"},
		{"protocol feature not offered", func(f *frontEnd) { f.send(reqSetProtocolFeatures, u64(1<<3)) }, "0x8 were not offered"},
		{"queue 1 of 1", func(f *frontEnd) { f.send(reqSetVringNum, pair(1, 8)) }, "queue 1 of 1"},
		{"queue -1", func(f *frontEnd) { f.send(reqGetVringBase, pair(1<<32-1, 0)) }, "queue 4294967295 of 1"},
		{"kick of queue 255", func(f *frontEnd) { f.send(reqSetVringKick, u64(255), f.queues[0].kickFD) }, "queue 255 of 1"},
		{"kick without eventfd", func(f *frontEnd) { f.send(reqSetVringKick, u64(0)) }, "0 file descriptors"},
		{"kick by polling", func(f *frontEnd) { f.send(reqSetVringKick, u64(noFD)) }, "not offered"},
		{"kick is a file", func(f *frontEnd) { f.send(reqSetVringKick, u64(0), f.memfd) }, "not an eventfd"},
		{"nine descriptors", func(f *frontEnd) {
			k := f.memfd
			f.send(reqSetMemTable, table(9), k, k, k, k, k, k, k, k, k)
		}, "more than 8 file descriptors"},
		{"no entries", func(f *frontEnd) { f.send(reqSetVringNum, pair(0, 0)) }, "0 entries"},
		{"seven entries", func(f *frontEnd) { f.send(reqSetVringNum, pair(0, 7)) }, "7 entries"},
		{"2^31 entries", func(f *frontEnd) { f.send(reqSetVringNum, pair(0, 1<<31)) }, "2147483648 entries"},
		{"base of 17 bits", func(f *frontEnd) { f.send(reqSetVringBase, pair(0, 1<<16)) }, "65536"},
		{"address before memory", func(f *frontEnd) { f.send(reqSetVringAddr, make([]byte, 40)) }, "SET_MEM_TABLE has not"},
		{"address before size", func(f *frontEnd) { f.sendMemory(); f.send(reqSetVringAddr, make([]byte, 40)) }, "SET_VRING_NUM has not"},
		{"ring outside", func(f *frontEnd) {
			f.sendMemory()
			f.send(reqSetVringNum, pair(0, 8))
			f.send(reqSetVringAddr, table(0, userBase+uint64(len(f.ram))-16, userBase, userBase, 0))
		}, "not in the guest's memory"},
		{"ring not aligned", func(f *frontEnd) {
			f.sendMemory()
			f.send(reqSetVringNum, pair(0, 8))
			f.send(reqSetVringAddr, table(0, userBase+8, userBase, userBase, 0))
		}, "not aligned"},
		{"logging", func(f *frontEnd) { f.sendMemory(); f.send(reqSetVringAddr, append(pair(0, 1), make([]byte, 32)...)) }, "logging"},
		{"no regions", func(f *frontEnd) { f.send(reqSetMemTable, table(0)) }, "0 memory regions"},
		{"regions without descriptors", func(f *frontEnd) { f.send(reqSetMemTable, table(1, 0, 1, 0, 0)) }, "with 0 file descriptors"},
		{"2^32-1 regions", func(f *frontEnd) { f.send(reqSetMemTable, table(1<<32-1), f.memfd) }, "4294967295 memory regions"},
		{"region larger than its file", func(f *frontEnd) { f.send(reqSetMemTable, table(1, 0, 1<<30, 0, 0), f.memfd) }, "holds"},
		{"size changes while it runs", func(f *frontEnd) { f.start(); f.send(reqSetVringNum, pair(0, 8)) }, "queue 0 runs"},
		{"enabled before it is set up", func(f *frontEnd) { f.send(reqSetVringEnable, pair(0, 1)); f.sync() }, ""},
		{"kick before it is set up", func(f *frontEnd) {
			f.send(reqSetVringEnable, pair(0, 1))
			f.send(reqSetVringKick, u64(0), f.queues[0].kickFD)
			f.sync()
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFrontEnd(t, newEcho(1), 1<<20)
			f.addQueue(8)
			c.do(f)
			f.conn.CloseWrite()
			err := f.wait()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Serve: %v, want %q", err, c.want)
			}
		})
	}
}

// A guest that breaks the rules of a stream loses that stream and no other.
func TestVsockRulesOfAStream(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(g *guest, p packet)
		ok   bool
	}{
		{"data", func(g *guest, p packet) { p.op = opData; g.sendRaw(p, []byte("x")) }, true},
		{"credit request", func(g *guest, p packet) { p.op = opCreditRequest; g.sendRaw(p, nil) }, true},
		{"window of nothing", func(g *guest, p packet) { p.op, p.window = opCreditUpdate, 0; g.sendRaw(p, nil) }, true},
		{"another guest's name", func(g *guest, p packet) {
			p.op, p.source, p.dest, p.kind = opReset, guestCID+1, hostCID, typeStream
			g.sendPacket(p, nil)
		}, true},
		{"to another machine", func(g *guest, p packet) {
			p.op, p.source, p.dest, p.kind = opReset, guestCID, 1, typeStream
			g.sendPacket(p, nil)
		}, true},
		{"second request", func(g *guest, p packet) { p.op = opRequest; g.sendRaw(p, nil) }, false},
		{"second response", func(g *guest, p packet) { p.op = opResponse; g.sendRaw(p, nil) }, false},
		{"operation 0", func(g *guest, p packet) { p.op = 0; g.sendRaw(p, nil) }, false},
		{"operation 65535", func(g *guest, p packet) { p.op = 65535; g.sendRaw(p, nil) }, false},
		{"type 2", func(g *guest, p packet) {
			p.op, p.source, p.dest, p.kind = opCreditUpdate, guestCID, hostCID, 2
			g.sendPacket(p, nil)
		}, false},
		{"took what was not sent", func(g *guest, p packet) { p.op, p.taken = opCreditUpdate, 1; g.sendRaw(p, nil) }, false},
		{"size larger than the data", func(g *guest, p packet) {
			p.op, p.source, p.dest, p.kind, p.size = opData, guestCID, hostCID, typeStream, 1<<32-1
			g.sendPacket(p, []byte("x"))
		}, false},
		{"size smaller than the data", func(g *guest, p packet) {
			p.op, p.source, p.dest, p.kind, p.size = opData, guestCID, hostCID, typeStream, 1
			g.sendPacket(p, []byte("xyz"))
		}, false},
		{"data in a credit update", func(g *guest, p packet) { p.op = opCreditUpdate; g.sendRaw(p, []byte("x")) }, false},
		{"data after its shutdown", func(g *guest, p packet) {
			p.op, p.flags = opShutdown, shutSend
			g.sendRaw(p, nil)
			p.op, p.flags = opData, 0
			g.sendRaw(p, []byte("x"))
		}, false},
		{"the whole window", func(g *guest, p packet) {
			p.op = opData
			for range window / maxVsockData {
				g.sendRaw(p, make([]byte, maxVsockData))
			}
		}, true},
		{"a byte beyond the window", func(g *guest, p packet) {
			p.op = opData
			for range window / maxVsockData {
				g.sendRaw(p, make([]byte, maxVsockData))
			}
			g.sendRaw(p, []byte("x"))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newVsockGuest(t)
			l, err := g.d.Listen(5)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			s, err := g.dial(5)
			if err != nil {
				t.Fatal(err)
			}
			h, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			c.send(g, packet{ports: s.ports, window: guestWindow})
			// A request to nobody, as a fence: its reset comes after the
			// answer to what was sent before.
			if _, err := g.dial(6); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			g.mu.Lock()
			resets := g.resets[s.ports]
			g.mu.Unlock()
			if c.ok != (resets == 0) {
				t.Errorf("%d resets, want the stream kept: %v", resets, c.ok)
			}
			if !c.ok {
				if _, err := h.Write([]byte("x")); err == nil {
					t.Error("the host's end can still be written")
				}
			}
			g.listen(10, echoStream)
			if err := exchange(dial(t, g, 10), 1000); err != nil {
				t.Errorf("another stream: %v", err)
			}
		})
	}
}

// A receive buffer without room for a byte ends the device until the driver
// sets it up anew.
func TestVsockUselessBuffer(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	c := dial(t, g, 10)
	g.setDeaf(true)
	g.mu.Lock()
	for i := range g.rx.size {
		g.rx.setDesc(i, guestBase+g.bufs[i], vsockHeader, descWrite, 0)
	}
	g.mu.Unlock()
	if _, err := c.Write([]byte("x")); !errors.Is(err, ErrBroken) {
		t.Errorf("Write: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrBroken) {
		t.Errorf("Read: %v", err)
	}
	if _, err := g.d.Dial(testContext(t), 10); !errors.Is(err, ErrBroken) {
		t.Errorf("Dial: %v", err)
	}
	g.reboot()
	g.setDeaf(false)
	if err := exchange(dial(t, g, 10), 1000); err != nil {
		t.Error(err)
	}
}

// TestHostileGuest lets a guest write nonsense for some seconds; the streams of
// the host fail or not, but nothing panics, hangs or grows without bound.
func TestHostileGuest(t *testing.T) {
	d := 5 * time.Second
	switch {
	case os.Getenv("CARREL_SCALE") == "full":
		d = 30 * time.Second
	case testing.Short():
		d = time.Second
	}
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewSource(seed))
	var packets, accepted, broken atomic.Int64
	for begun := time.Now(); time.Since(begun) < d || accepted.Load() == 0 && time.Since(begun) < patience; { // on a slow machine, longer
		hostileRound(t, r, &packets, &accepted, &broken)
	}
	t.Logf("%d packets, %d streams, %d broken queues", packets.Load(), accepted.Load(), broken.Load())
	if packets.Load() == 0 || accepted.Load() == 0 {
		t.Error("the guest reached nothing")
	}
}

func hostileRound(t *testing.T, r *rand.Rand, packets, accepted, broken *atomic.Int64) {
	dev := NewVsock(guestCID)
	f := newFrontEnd(t, dev, 4<<20)
	rx, tx := f.addQueue(64), f.addQueue(64)
	l, err := dev.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			wg.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := dev.Dial(ctx, uint32(100))
				if err == nil {
					c.SetDeadline(time.Now().Add(10 * time.Millisecond))
					c.Write(make([]byte, 10_000))
					c.Close()
				}
			}
		})
	}
	bufs, pkts := f.alloc(64*rxBufSize), f.alloc(64*4096)
	evil := r.Intn(3) == 0
	f.start()
	for range 200 {
		for rx.availIdx-uint16(atomic.LoadUint32(rx.word(rx.used))>>16) < 64 {
			i := int(rx.availIdx) % 64
			rx.setDesc(i, guestBase+bufs+uint64(i*rxBufSize), rxBufSize, descWrite, 0)
			rx.offer(uint16(i))
		}
		for range 1 + r.Intn(16) {
			hostilePacket(r, tx, pkts, evil)
			packets.Add(1)
		}
		if evil && r.Intn(50) == 0 {
			q := f.queues[r.Intn(2)]
			le.PutUint32(f.ram[q.desc+4*uint64(r.Intn(4*q.size)):], r.Uint32())
			if r.Intn(4) == 0 {
				q.availIdx += uint16(r.Intn(70))
				q.setAvail(uint16(r.Intn(2)), q.availIdx)
			}
		}
		unix.Write(rx.kickFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		unix.Write(tx.kickFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		switch r.Intn(60) {
		case 0:
			f.stop()
			f.start()
		case 1:
			f.reset()
		}
		dev.mu.Lock()
		if dev.count > maxStreams || len(dev.streams) > maxStreams || len(dev.resets) > maxResets || len(dev.turns) > 2*maxStreams {
			t.Errorf("%d streams, %d known, %d resets, %d turns", dev.count, len(dev.streams), len(dev.resets), len(dev.turns))
		}
		dev.mu.Unlock()
	}
	dev.mu.Lock()
	if dev.failure != nil {
		broken.Add(1)
	}
	dev.mu.Unlock()
	cancel()
	f.conn.Close()
	f.wait()
	dev.Close()
	wg.Wait()
}

// hostilePacket offers a packet that is right in most fields.
func hostilePacket(r *rand.Rand, q *driverQueue, pkts uint64, evil bool) {
	i := int(q.availIdx) % (q.size / 2)
	at := pkts + uint64(i)*4096
	b := q.f.ram[at:]
	le.PutUint64(b, guestCID)
	le.PutUint64(b[8:], hostCID)
	le.PutUint32(b[16:], uint32(100+r.Intn(4)))
	le.PutUint32(b[20:], []uint32{5, firstDialPort, firstDialPort + uint32(r.Intn(500))}[r.Intn(3)])
	op := 1 + r.Intn(8)
	n := 0
	if op == opData {
		n = r.Intn(4000)
	}
	le.PutUint32(b[24:], uint32(n))
	le.PutUint16(b[28:], typeStream)
	le.PutUint16(b[30:], uint16(op))
	le.PutUint32(b[32:], uint32(r.Intn(4)))
	le.PutUint32(b[36:], uint32(r.Intn(1<<18)))
	le.PutUint32(b[40:], 0)
	if r.Intn(20) == 0 {
		le.PutUint32(b[4*r.Intn(11):], r.Uint32())
	}
	if n > 0 {
		q.setDesc(2*i, guestBase+at, vsockHeader, descNext, uint16(2*i+1))
		q.setDesc(2*i+1, guestBase+at+vsockHeader, uint32(n), 0, 0)
	} else {
		q.setDesc(2*i, guestBase+at, vsockHeader, 0, 0)
	}
	if evil && r.Intn(100) == 0 {
		le.PutUint32(q.f.ram[q.desc+uint64(32*i+4*r.Intn(8)):], r.Uint32())
	}
	if uint16(q.availIdx-uint16(atomic.LoadUint32(q.word(q.used))>>16)) < uint16(q.size/2) {
		q.offer(uint16(2 * i))
	}
}
