package steer

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// lookup is the attached program with its two maps. All of it ends with this
// process: nothing is pinned.
type lookup struct {
	own, sockets, link int
}

// Keys of the map of sockets.
const (
	socketTCP = 0
	socketDNS = 1
)

// attachLookup puts the program between the namespace's packets and sockets.
func attachLookup(tcp *net.TCPListener, dns *net.UDPConn) (_ *lookup, err error) {
	l := &lookup{own: -1, sockets: -1, link: -1}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.own, err = createMap(unix.BPF_MAP_TYPE_LPM_TRIE, 8, 4, maxOwn+8, unix.BPF_F_NO_PREALLOC); err != nil {
		return nil, err
	}
	if err := l.addPrefix(netip.PrefixFrom(listenTCP.Addr(), 8).Masked()); err != nil {
		return nil, err
	}
	if l.sockets, err = createMap(unix.BPF_MAP_TYPE_SOCKMAP, 4, 4, 2, 0); err != nil {
		return nil, err
	}
	for key, s := range []syscall.Conn{socketTCP: tcp, socketDNS: dns} {
		if err := l.setSocket(uint32(key), s); err != nil {
			return nil, err
		}
	}
	prog, err := loadProgram(program(l.own, l.sockets))
	if err != nil {
		return nil, err
	}
	defer unix.Close(prog)
	ns, err := namespace(tcp)
	if err != nil {
		return nil, fmt.Errorf("find the network namespace: %w", err)
	}
	defer unix.Close(ns)
	l.link, err = createLink(prog, ns, unix.BPF_SK_LOOKUP)
	return l, err
}

// namespace asks a socket for its own, because this may run when /proc is being
// moved to the guest's root.
func namespace(of syscall.Conn) (ns int, err error) {
	ns = -1
	err = control(of, func(fd int) error {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGSKNS, 0)
		if e != 0 {
			return e
		}
		ns = int(r)
		unix.CloseOnExec(ns)
		return nil
	})
	return ns, err
}

func (l *lookup) close() {
	for _, fd := range []int{l.link, l.sockets, l.own} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func (l *lookup) add(a netip.Addr) error { return l.addPrefix(netip.PrefixFrom(a, 32)) }

func (l *lookup) addPrefix(p netip.Prefix) error {
	return updateElement(l.own, trieKey(p), make([]byte, 4))
}

func (l *lookup) remove(a netip.Addr) error {
	return deleteElement(l.own, trieKey(netip.PrefixFrom(a, 32)))
}

// trieKey is struct bpf_lpm_trie_key: the length in the processor's order, the
// address in the network's.
func trieKey(p netip.Prefix) []byte {
	a := p.Addr().As4()
	return append(binary.NativeEndian.AppendUint32(nil, uint32(p.Bits())), a[:]...)
}

func (l *lookup) setSocket(key uint32, s syscall.Conn) error {
	err := control(s, func(fd int) error {
		return updateElement(l.sockets, binary.NativeEndian.AppendUint32(nil, key), binary.NativeEndian.AppendUint32(nil, uint32(fd)))
	})
	if err != nil {
		return fmt.Errorf("give the program its sockets: %w", err)
	}
	return nil
}

// TryLookup loads a program of the kind that steers connections, which changes nothing, and drops it again.
func TryLookup() error {
	a := &assembler{}
	a.set(0, skPass)
	a.exit()
	fd, err := loadProgram(a.finish())
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
