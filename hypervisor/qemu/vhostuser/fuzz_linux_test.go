package vhostuser

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// fuzzMemory maps n bytes of fresh guest memory. The caller releases it.
func fuzzMemory(t testing.TB, n int) *memory {
	t.Helper()
	fd := sealedMemory(t, n)
	defer unix.Close(fd)
	p := pair(1, 0)
	for _, v := range []uint64{guestBase, uint64(n), userBase, 0} {
		p = le.AppendUint64(p, v)
	}
	m, err := mapMemory(p, []int{fd})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// FuzzMessage has a front end send arbitrary messages, each with up to two
// descriptors, of which one is memory and one an eventfd.
func FuzzMessage(f *testing.F) {
	msg := func(req byte, fds byte, payload []byte) []byte {
		return append([]byte{req, fds, byte(len(payload))}, payload...)
	}
	var mem []byte
	for _, v := range []uint64{1, guestBase, 1 << 16, userBase, 0} {
		mem = le.AppendUint64(mem, v)
	}
	addr := pair(0, 0)
	for _, v := range []uint64{userBase, userBase + 1024, userBase + 2048, 0} {
		addr = le.AppendUint64(addr, v)
	}
	var all []byte
	for _, m := range [][]byte{
		msg(reqSetFeatures, 0, u64(featureVersion1|featureProtocolFeatures)), msg(reqSetMemTable, 1, mem),
		msg(reqSetVringNum, 0, pair(0, 8)), msg(reqSetVringBase, 0, pair(0, 0)), msg(reqSetVringAddr, 0, addr),
		msg(reqSetVringKick, 2, u64(0)), msg(reqSetVringCall, 2, u64(0)), msg(reqSetVringEnable, 0, pair(0, 1)),
		msg(reqGetConfig, 0, append(pair(0, 8), make([]byte, 12)...)), msg(reqGetVringBase, 0, pair(0, 0)),
	} {
		f.Add(m)
		all = append(all, m...)
	}
	f.Add(all)
	ram := sealedMemory(f, 1<<16)
	f.Cleanup(func() { unix.Close(ram) })
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := newServer(newEcho(2))
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		for len(b) >= 3 {
			n := min(int(b[2]), len(b)-3)
			m := &message{request: uint32(b[0]), payload: append([]byte(nil), b[3:3+n]...)}
			for _, want := range []byte{b[1] & 1, b[1] & 2} {
				fd := -1
				var err error
				switch want {
				case 0:
					continue
				case 1:
					fd, err = unix.FcntlInt(uintptr(ram), unix.F_DUPFD_CLOEXEC, 0)
				case 2:
					fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
				}
				if err != nil {
					t.Fatal(err)
				}
				m.fds = append(m.fds, fd)
			}
			b = b[3+n:]
			if len(m.payload) < minPayload[m.request] { // as readMessage does
				m.close()
				continue
			}
			reply, err := s.handle(m)
			m.close()
			if len(reply) > maxPayload {
				t.Fatalf("a reply of %d bytes", len(reply))
			}
			if err != nil {
				return
			}
		}
	})
}

// FuzzHeader parses what a front end sends as the header of a message.
func FuzzHeader(f *testing.F) {
	f.Add(append(pair(1, 1), 0, 0, 0, 0))
	f.Add(append(pair(5, 1), 8, 1, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		if _, size, err := parseHeader(b); err == nil && size > maxPayload {
			t.Fatalf("a payload of %d bytes was let through", size)
		}
	})
}

// FuzzChain lets a guest fill its rings with anything.
func FuzzChain(f *testing.F) {
	const (
		size  = 8
		avail = 16 * size
		used  = avail + 32
		whole = used + 128
	)
	one := make([]byte, whole)
	le.PutUint64(one, guestBase+4096)
	le.PutUint32(one[8:], 16)
	le.PutUint16(one[avail+2:], 1)
	f.Add(one)
	two := append([]byte(nil), one...)
	le.PutUint16(two[12:], descNext)
	le.PutUint16(two[14:], 1)
	le.PutUint64(two[16:], guestBase+8192)
	le.PutUint32(two[24:], 64)
	le.PutUint16(two[28:], descWrite)
	f.Add(two)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := fuzzMemory(t, 1<<16)
		defer m.release()
		q := &Queue{call: -1, size: size}
		copy(m.regions[0].ram, b[:min(len(b), whole)])
		q.mu.Lock()
		err := q.mapLocked(m, ringAddr{userBase, userBase + used, userBase + avail})
		q.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		q.run(q.look())
		var held []*Chain
		for range 2 * size {
			c := &Chain{}
			ok, err := q.Pop(c)
			if err != nil && !errors.Is(err, ErrBroken) || ok && err != nil {
				t.Fatalf("%v, %v", ok, err)
			}
			if !ok {
				break
			}
			total := c.ReadableLen() + c.WritableLen()
			if n := len(c.Readable) + len(c.Writable); n > size || total > maxChainBytes {
				t.Fatalf("%d segments, %d bytes", n, total)
			}
			for _, s := range append(c.Readable, c.Writable...) {
				for i := range s {
					s[i]++ // a fault, if it is not the guest's memory
				}
			}
			held = append(held, c)
		}
		for _, c := range held {
			q.Push(c, 1<<31)
		}
		q.Notify()
		q.mu.Lock()
		defer q.mu.Unlock()
		q.unmapLocked()
		if n := m.refs.Load(); n != 1 || q.inFlight != 0 {
			t.Fatalf("%d holds on the memory, %d chains under way", n, q.inFlight)
		}
	})
}

// FuzzPacket gives the device packets, one after the other: two bytes of
// length, then header and data.
func FuzzPacket(f *testing.F) {
	header := func(op uint16, host, size, flags uint32) []byte {
		var h [vsockHeader]byte
		putPacket(&h, packet{source: guestCID, dest: hostCID, ports: ports{host: 900, guest: host}, kind: typeStream, op: op, size: size, flags: flags, window: 4096})
		return append([]byte{byte(vsockHeader + size), 0}, h[:]...)
	}
	f.Add(header(opRequest, 5, 0, 0))
	f.Add(append(header(opRequest, 5, 0, 0), append(header(opData, 5, 3, 0), "abc"...)...))
	f.Add(append(header(opRequest, 5, 0, 0), header(opShutdown, 5, 0, shutBoth)...))
	f.Add(append(header(opResponse, firstDialPort, 0, 0), header(opReset, firstDialPort, 0, 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewVsock(guestCID)
		defer d.Close()
		l, err := d.Listen(5)
		if err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		dialled := d.newStreamLocked(ports{host: firstDialPort, guest: 900})
		dialled.want = wantRequest
		dialled.queueLocked()
		sent, got := 0, 0
		for len(b) >= 2 {
			n := min(int(le.Uint16(b)), len(b)-2)
			p := b[2 : 2+n]
			b = b[2+n:]
			sent += n
			// The header may lie in several segments.
			cut := min(n, 20)
			d.packetLocked(&Chain{Readable: [][]byte{p[:cut:cut], p[cut:]}})
			// What is to be sent must be sound too; nobody takes it here.
			if s := d.nextTurnLocked(); s != nil {
				var out packet
				data := s.nextLocked(&out, 100)
				d.endTurnLocked()
				s.queueLocked()
				if len(data) != 0 || out.op == 0 {
					t.Fatalf("%+v with %d bytes", out, len(data))
				}
			}
		}
		if d.count > maxStreams || len(d.resets) > maxResets {
			t.Fatalf("%d streams, %d resets", d.count, len(d.resets))
		}
		for _, s := range d.listeners[5].waiting {
			if len(s.in.b) > int(s.window) {
				t.Fatalf("a buffer of %d bytes", len(s.in.b))
			}
			got += s.in.n
		}
		waiting := len(d.listeners[5].waiting)
		d.mu.Unlock()
		if got > sent {
			t.Fatalf("%d bytes received of %d", got, sent)
		}
		d.Close()
		for range waiting {
			c, err := l.Accept()
			if err != nil {
				break // Close resets those that nobody accepted
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
	})
}
