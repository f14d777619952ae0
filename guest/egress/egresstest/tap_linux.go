package egresstest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sort"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Flow is a kind of packet that came from the host: what it was, and to where.
// Port is 0 where the protocol has none.
type Flow struct {
	// Proto is "tcp", "udp", "icmp", "ip-47", "ether-0x88cc", ...
	Proto string
	To    netip.Addr
	Port  uint16
}

func (f Flow) String() string {
	return fmt.Sprintf("%s to %s", f.Proto, netip.AddrPortFrom(f.To, f.Port))
}

// Tap looks at every packet on the cable.
type Tap struct {
	t      testing.TB
	mark   net.Conn // to the gateway, where nobody listens
	marks  chan struct{}
	syncMu sync.Mutex

	mu     sync.Mutex
	flows  map[Flow]int
	opened map[connection]bool // since the last Reset
	before map[connection]bool // and before that
}

// connection is one of TCP, by the port that it comes from.
type connection struct {
	Flow
	from uint16
}

// markPort is that of the packets which say that all before them were seen.
const markPort = 9

// newTap opens a packet socket on the world's end of the cable.
func newTap(t testing.TB, w *World) (*Tap, error) {
	tap := &Tap{t: t, flows: map[Flow]int{}, opened: map[connection]bool{}, before: map[connection]bool{}, marks: make(chan struct{}, 64)}
	var f *os.File
	err := w.inside(func() error {
		all := int(htons(unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		i, err := net.InterfaceByName("cable")
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: i.Index})
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), "tap")
		return nil
	})
	if err != nil {
		return nil, err
	}
	w.stop = append(w.stop, func() { f.Close() })
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if tap.mark, err = net.Dial("udp", net.JoinHostPort(Gateway, fmt.Sprint(markPort))); err != nil {
		return nil, err
	}
	w.stop = append(w.stop, func() { tap.mark.Close() })
	w.wait.Go(func() { tap.read(raw) })
	return tap, nil
}

func (t *Tap) read(raw interface {
	Read(func(uintptr) bool) error
}) {
	b := make([]byte, 256) // headers are enough
	for {
		var n int
		var from unix.Sockaddr
		var err error
		ended := raw.Read(func(fd uintptr) bool {
			n, from, err = unix.Recvfrom(int(fd), b, 0)
			return err != unix.EAGAIN
		})
		if ended != nil || err != nil && err != unix.EINTR {
			return
		}
		// What the world sends is not the host's doing.
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if f, ok := parse(b[:n]); ok && f.Port == markPort && f.To == gateway {
			select {
			case t.marks <- struct{}{}:
			default:
			}
		} else if ok {
			t.count(f, b[:n])
		}
	}
}

var gateway = netip.MustParseAddr(Gateway)

// sync waits until everything that was sent before it has been seen.
func (t *Tap) sync() {
	t.syncMu.Lock()
	defer t.syncMu.Unlock()
	for len(t.marks) > 0 {
		<-t.marks
	}
	// A mark may be lost where the tap's buffer is full, so there is more than one; the
	// tests that pass wait for none of the bounds.
	for range 60 {
		// The first of two writes may fail with the gateway's earlier "nobody
		// listens there".
		if _, err := t.mark.Write([]byte{0}); err != nil {
			if _, err = t.mark.Write([]byte{0}); err != nil {
				t.t.Errorf("mark the cable: %v", err)
				return
			}
		}
		select {
		case <-t.marks:
			return
		case <-time.After(5 * time.Second):
		}
	}
	t.t.Error("of 60 packets on the cable none was seen in 300 s")
}

// Flows are the kinds of packets that came since the last Reset, in order.
// Looking for neighbours (ARP, and ICMPv6's neighbour and router messages) is
// left out: the kernel does that.
func (t *Tap) Flows() []Flow {
	t.sync()
	t.mu.Lock()
	defer t.mu.Unlock()
	fs := make([]Flow, 0, len(t.flows))
	for f := range t.flows {
		fs = append(fs, f)
	}
	sort.Slice(fs, func(i, j int) bool { return fs[i].String() < fs[j].String() })
	return fs
}

// Beyond are the flows that are neither to the host's name server nor to one of
// the addresses and ports given as "ADDR" or "ADDR:PORT".
func (t *Tap) Beyond(allowed ...string) (fs []Flow) {
	for _, f := range t.Flows() {
		known := f.To.String() == Resolver && f.Port == 53
		for _, a := range allowed {
			known = known || a == f.To.String() || a == netip.AddrPortFrom(f.To, f.Port).String()
		}
		if !known {
			fs = append(fs, f)
		}
	}
	return fs
}

// count counts a packet, but for the end of a connection that was opened before the
// last Reset: on a busy machine that may come after it, and carries nothing.
func (t *Tap) count(f Flow, frame []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.Proto == "tcp" {
		from, opens, bare := segment(frame)
		c := connection{f, from}
		if opens {
			t.opened[c] = true
			delete(t.before, c)
		}
		if bare && t.before[c] {
			return
		}
	}
	t.flows[f]++
}

// Reset forgets what was seen.
func (t *Tap) Reset() {
	t.sync()
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.Copy(t.before, t.opened)
	t.flows, t.opened = map[Flow]int{}, map[connection]bool{}
}

// segment reads what a frame with TCP says of its connection: from where it comes,
// whether it opens it, and whether it has no byte for the other side.
func segment(frame []byte) (from uint16, opens, bare bool) {
	ip := frame[14:]
	head, size := 40, int(binary.BigEndian.Uint16(ip[4:]))
	if binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP {
		head = int(ip[0]&15) * 4
		size = int(binary.BigEndian.Uint16(ip[2:])) - head
	}
	if len(ip) < head+14 {
		return 0, false, false
	}
	tcp := ip[head:]
	opens = tcp[13]&2 != 0
	return binary.BigEndian.Uint16(tcp), opens, !opens && size == int(tcp[12]>>4)*4
}

// parse reads an Ethernet frame's kind and destination.
func parse(b []byte) (f Flow, ok bool) {
	if len(b) < 14 {
		return f, false
	}
	kind, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	var proto byte
	switch {
	case kind == unix.ETH_P_ARP:
		return f, false
	case kind == unix.ETH_P_IP && len(b) >= 20:
		f.To, proto = netip.AddrFrom4([4]byte(b[16:20])), b[9]
		b = b[min(len(b), int(b[0]&15)*4):]
	case kind == unix.ETH_P_IPV6 && len(b) >= 40:
		f.To, proto = netip.AddrFrom16([16]byte(b[24:40])), b[6]
		b = b[40:]
	default:
		f.Proto = fmt.Sprintf("ether-%#04x", kind)
		return f, true
	}
	switch proto {
	case unix.IPPROTO_TCP:
		f.Proto = "tcp"
	case unix.IPPROTO_UDP:
		f.Proto = "udp"
	case unix.IPPROTO_ICMP:
		f.Proto = "icmp"
	case unix.IPPROTO_ICMPV6:
		// 130-137 and 143: listeners, routers and neighbours.
		if len(b) > 0 && (b[0] >= 130 && b[0] <= 137 || b[0] == 143) {
			return f, false
		}
		f.Proto = "icmp6"
	default:
		f.Proto = fmt.Sprintf("ip-%d", proto)
		// Hop-by-hop options carry the multicast listeners' reports.
		return f, !(kind == unix.ETH_P_IPV6 && proto == 0 && f.To.IsMulticast())
	}
	if (f.Proto == "tcp" || f.Proto == "udp") && len(b) >= 4 {
		f.Port = binary.BigEndian.Uint16(b[2:])
	}
	return f, true
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }
