package names

import (
	"net/netip"
	"strings"
	"sync"
)

// MaxNames is how many names a guest can look up in its life. A name takes
// about 200 bytes, so that a task that makes names up costs the agent little.
const MaxNames = 16 << 10

// maxName is the longest host name, in bytes without the final dot (RFC 1035,
// section 2.3.4).
const maxName = 253

var (
	// Synthetic is where the addresses come from: the range for benchmarks of
	// network devices (RFC 2544), which is nobody's on the Internet.
	Synthetic = netip.MustParsePrefix("198.18.0.0/15")
	// Own is the guest's own address, which lies in Synthetic. No name gets
	// an address of its /24.
	Own = netip.MustParseAddr("198.18.0.1")

	loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

// Table is the names of one guest. An address once given stays its name's as
// long as the Table lives: programs keep answers for longer than they may.
// The zero Table is empty and ready.
type Table struct {
	mu     sync.RWMutex
	number map[string]uint32
	names  []string
}

// Address returns name's address and gives it one if it has none. false means
// that the table is full. The name must be canonical: see canonical.
func (t *Table) Address(name string) (netip.Addr, bool) {
	t.mu.RLock()
	n, ok := t.number[name]
	t.mu.RUnlock()
	if ok {
		return address(n), true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.number[name]; ok {
		return address(n), true
	}
	if len(t.names) >= MaxNames {
		return netip.Addr{}, false
	}
	if t.number == nil {
		t.number = make(map[string]uint32)
	}
	name = strings.Clone(name)
	n = uint32(len(t.names))
	t.names = append(t.names, name)
	t.number[name] = n
	return address(n), true
}

// Name returns whose address a is.
func (t *Table) Name(a netip.Addr) (string, bool) {
	n, ok := number(a)
	if !ok {
		return "", false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if int(n) >= len(t.names) {
		return "", false
	}
	return t.names[n], true
}

// Len returns how many names have an address.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.names)
}

// perNet is how many addresses of a /24 are given: some programs take the
// first and the last for a network and a broadcast.
const perNet = 254

// address is the n-th: 198.18.1.1, and so on. MaxNames is far below what the
// range holds.
func address(n uint32) netip.Addr {
	b := Synthetic.Addr().As4()
	net := uint32(b[0])<<24 | uint32(b[1])<<16 + (1+n/perNet)<<8
	v := net | (1 + n%perNet)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func number(a netip.Addr) (uint32, bool) {
	if !Synthetic.Contains(a) {
		return 0, false
	}
	b := a.As4()
	net := uint32(b[1]-18)<<8 | uint32(b[2])
	if net == 0 || b[3] == 0 || b[3] == 255 {
		return 0, false
	}
	return (net-1)*perNet + uint32(b[3]) - 1, true
}

// canonical lower-cases the host name of a question, without its final dot,
// and says whether it is one: labels of letters, digits, hyphens and
// underscores, and not something that a resolver could take for an address.
func canonical(question string) (string, bool) {
	name := strings.TrimSuffix(question, ".")
	if name == "" || len(name) > maxName {
		return "", false
	}
	b := []byte(name)
	label := 0
	for i, c := range b {
		switch {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = 0
			continue
		case 'A' <= c && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	name = string(b)
	return name, label > 0 && !numeric(name[strings.LastIndexByte(name, '.')+1:])
}

// numeric says whether a name whose last label this is would be read as an
// address: no top-level domain is a number (RFC 3696, section 2; the same rule
// as https://url.spec.whatwg.org/#ends-in-a-number-checker).
func numeric(label string) bool {
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		label, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(label, digits) == ""
}
