package vhostuser

import (
	"fmt"
	"net"
	"strconv"
)

// The packet of VIRTIO 1.2, 5.10.6: a header of 44 bytes, then data.
const (
	vsockHeader = 44
	hostCID     = 2
	typeStream  = 1
	// maxVsockData is VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux, the most data
	// that its driver puts into one packet.
	maxVsockData = 64 << 10

	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opData          = 5
	opCreditUpdate  = 6
	opCreditRequest = 7

	// Flags of opShutdown: the sender will not receive, not send, any more.
	shutReceive = 1
	shutSend    = 2
	shutBoth    = shutReceive | shutSend
)

// ports name a connection: a device has one guest and one host address.
type ports struct{ host, guest uint32 }

// packet is a header in the direction from the guest to the host.
type packet struct {
	ports
	source, dest uint64
	kind, op     uint16
	size         uint32 // of the data that follows
	flags        uint32
	window       uint32 // buf_alloc: what the sender is ready to hold
	taken        uint32 // fwd_cnt: what it has taken out of that, in all
}

func parsePacket(h *[vsockHeader]byte) packet {
	return packet{
		source: le.Uint64(h[0:]), dest: le.Uint64(h[8:]),
		ports: ports{guest: le.Uint32(h[16:]), host: le.Uint32(h[20:])},
		size:  le.Uint32(h[24:]), kind: le.Uint16(h[28:]), op: le.Uint16(h[30:]),
		flags: le.Uint32(h[32:]), window: le.Uint32(h[36:]), taken: le.Uint32(h[40:]),
	}
}

// putPacket writes p as a header in the direction from the host to the guest.
func putPacket(h *[vsockHeader]byte, p packet) {
	le.PutUint64(h[0:], p.source)
	le.PutUint64(h[8:], p.dest)
	le.PutUint32(h[16:], p.host)
	le.PutUint32(h[20:], p.guest)
	le.PutUint32(h[24:], p.size)
	le.PutUint16(h[28:], p.kind)
	le.PutUint16(h[30:], p.op)
	le.PutUint32(h[32:], p.flags)
	le.PutUint32(h[36:], p.window)
	le.PutUint32(h[40:], p.taken)
}

// VsockAddr is one end of a stream between a guest and its host.
type VsockAddr struct {
	CID  uint64 // 2 is the host
	Port uint32
}

var _ net.Addr = VsockAddr{}

// Network is "vsock".
func (VsockAddr) Network() string { return "vsock" }

func (a VsockAddr) String() string {
	if a.CID == hostCID {
		return "host:" + strconv.FormatUint(uint64(a.Port), 10)
	}
	return fmt.Sprintf("guest(%d):%d", a.CID, a.Port)
}
