package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Device is what a virtio device does on top of the server.
//
// QueueReady and QueueStopped are called from one goroutine, Kick from one per
// queue, between the two. None may block for long: QEMU waits for
// QueueStopped with its lock held, so the guest and QMP wait as well.
type Device interface {
	// Features are the device's feature bits beyond VERSION_1.
	Features() uint64
	// Queues is the number of virtqueues that the back end serves, at most
	// MaxQueues.
	Queues() int
	// Config is the device's configuration space, at most 256 bytes; nil where
	// QEMU does not ask for it.
	Config() []byte
	// QueueReady says that queue i may be used. fresh: the driver has set the
	// device up (again), and nothing of before counts. Otherwise the guest was
	// only paused and everything goes on where it was. Either all queues of a
	// set-up are fresh or none.
	QueueReady(i int, q *Queue, fresh bool)
	// Kick says that the guest has notified queue i, or that the queue has just
	// become ready. After QueueStopped was called it must return promptly.
	Kick(i int, q *Queue)
	// QueueStopped says that queue i takes and gives no chains any more. It
	// should wait, within a bound, for the work under way: what is pushed later
	// is kept until the queue runs again.
	QueueStopped(i int)
}

// MaxQueues bounds Device.Queues.
const MaxQueues = 16

const (
	featureVersion1         = 1 << 32
	featureProtocolFeatures = 1 << 30
	protocolMQ              = 1 << 0 // lets QEMU ask for the number of queues
	protocolConfig          = 1 << 9

	noFD = 1 << 8 // in SET_VRING_KICK, _CALL, _ERR: no descriptor comes along
)

type server struct {
	dev    Device
	queues []*Queue
	config []byte
	mem    *memory
}

// Serve speaks vhost-user on conn until QEMU closes it, ctx ends, or a message
// makes no sense; then it stops the queues, lets go of the guest's memory,
// closes conn and returns. The error is nil when QEMU closed the socket, and
// ctx's when that ended.
//
// Several times in a guest's life the driver may set the device up anew; all
// of that happens within one Serve.
func Serve(ctx context.Context, conn *net.UnixConn, d Device) error {
	s, err := newServer(d)
	if err != nil {
		conn.Close()
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = s.serve(conn)
	stop()
	s.close()
	conn.Close()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return nil // QEMU was killed before it had read an answer, or before it got one
	}
	return fmt.Errorf("vhost-user: %w", err)
}

func newServer(d Device) (*server, error) {
	n := d.Queues()
	config := d.Config()
	if n < 1 || n > MaxQueues || len(config) > maxConfig {
		return nil, fmt.Errorf("a device with %d queues and %d bytes of configuration; at most %d and %d are possible", n, len(config), MaxQueues, maxConfig)
	}
	s := &server{dev: d, config: config}
	for i := range n {
		s.queues = append(s.queues, &Queue{index: i, call: -1})
	}
	return s, nil
}

func (s *server) serve(conn *net.UnixConn) error {
	buf := make([]byte, maxPayload)
	for {
		m, err := readMessage(conn, buf)
		if err != nil {
			return err
		}
		reply, err := s.handle(m)
		m.close()
		if err != nil {
			return fmt.Errorf("%s: %w", requestName(m.request), err)
		}
		if reply == nil {
			continue
		}
		if err := writeReply(conn, m.request, reply); err != nil {
			return fmt.Errorf("answer %s: %w", requestName(m.request), err)
		}
	}
}

func (s *server) close() {
	for _, q := range s.queues {
		s.stop(q)
		q.closeKick()
		q.setCall(-1)
		q.mu.Lock()
		q.unmapLocked()
		q.mu.Unlock()
	}
	if s.mem != nil {
		s.mem.release()
		s.mem = nil
	}
}

func (s *server) features() uint64 {
	return s.dev.Features() | featureVersion1 | featureProtocolFeatures
}

func (s *server) protocolFeatures() uint64 {
	if s.config == nil {
		return protocolMQ
	}
	return protocolMQ | protocolConfig
}

// handle does what m asks. A non-nil reply is to be sent.
func (s *server) handle(m *message) (reply []byte, err error) {
	p := m.payload
	switch m.request {
	case reqGetFeatures:
		return u64(s.features()), nil
	case reqSetFeatures:
		return nil, s.setFeatures(le.Uint64(p))
	case reqGetProtocolFeatures:
		return u64(s.protocolFeatures()), nil
	case reqSetProtocolFeatures:
		if extra := le.Uint64(p) &^ s.protocolFeatures(); extra != 0 {
			return nil, fmt.Errorf("protocol features %#x were not offered", extra)
		}
		return nil, nil
	case reqGetQueueNum:
		return u64(uint64(len(s.queues))), nil
	case reqSetOwner, reqResetOwner, reqResetDevice:
		return nil, nil // the rings tell what happened; see look
	case reqGetConfig:
		return s.getConfig(p), nil
	case reqSetConfig:
		return nil, nil // none of our devices has a field that the driver may write
	case reqSetMemTable:
		return nil, s.setMemTable(m)
	case reqSetVringNum, reqSetVringBase, reqSetVringAddr, reqGetVringBase, reqSetVringEnable:
		i := le.Uint32(p)
		if uint64(i) >= uint64(len(s.queues)) {
			return nil, fmt.Errorf("queue %d of %d", i, len(s.queues))
		}
		return s.handleRing(m, s.queues[i])
	case reqSetVringKick, reqSetVringCall, reqSetVringErr:
		v := le.Uint64(p)
		if v&0xff >= uint64(len(s.queues)) {
			return nil, fmt.Errorf("queue %d of %d", v&0xff, len(s.queues))
		}
		return nil, s.setEventFD(m, s.queues[v&0xff], v&noFD != 0)
	}
	return nil, errors.New("it was not negotiated")
}

func (s *server) setFeatures(acked uint64) error {
	if extra := acked &^ s.features(); extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	if missing := ^acked & (featureVersion1 | featureProtocolFeatures); missing != 0 {
		return fmt.Errorf("features %#x were not accepted (the device needs a virtio 1 driver; start qemu with virtio-mmio.force-legacy=false)", missing)
	}
	return nil
}

// getConfig answers with the bytes asked for; an empty answer says that it
// cannot.
func (s *server) getConfig(p []byte) []byte {
	off, n := uint64(le.Uint32(p)), uint64(le.Uint32(p[4:]))
	if n > uint64(len(p)-configHeader) || n > maxConfig || off > maxConfig || s.config == nil {
		return []byte{}
	}
	out := make([]byte, configHeader+n)
	copy(out, p[:configHeader])
	if off < uint64(len(s.config)) {
		copy(out[configHeader:], s.config[off:])
	}
	return out
}

// setMemTable replaces the guest's memory. Rings that are set up move along;
// chains under way keep the old mapping until they are completed.
func (s *server) setMemTable(m *message) error {
	mem, err := mapMemory(m.payload, m.fds)
	if err != nil {
		return err
	}
	if s.mem != nil {
		s.mem.release()
	}
	s.mem = mem
	for _, q := range s.queues {
		q.mu.Lock()
		if q.mem != nil {
			err = q.mapLocked(mem, q.addr)
		}
		q.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
