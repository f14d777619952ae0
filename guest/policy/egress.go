package policy

import (
	"errors"
	"net/netip"

	"github.com/carrel-vm/carrel/guest/api"
)

// Host is a destination in its one canonical form: a DNS name or an address.
// Only ParseHost makes one; what is decided on is what is dialled.
type Host struct {
	name string
	addr netip.Addr
}

// ParseHost makes the canonical host of a name or of an address literal. Odd
// input is refused, never repaired.
func ParseHost(s string) (Host, error) { return Host{}, errors.New("not written yet") }

// String returns the name, or the address without brackets.
func (h Host) String() string { return h.name }

// Addr returns the address and whether the host is one.
func (h Host) Addr() (netip.Addr, bool) { return h.addr, h.addr.IsValid() }

// Destination is a host and a TCP port.
type Destination struct {
	Host Host
	Port uint16
}

// String returns "host:port", with brackets where they are needed.
func (d Destination) String() string { return "" }

// Egress are the compiled rules of one guest. The zero value denies all.
type Egress struct{}

// NewEgress compiles rules; one that is malformed is an error that names its
// origin.
func NewEgress(rules []*api.EgressRule) (*Egress, error) { return nil, errors.New("not written yet") }

// Verdict is a decision.
type Verdict struct {
	// Action is ALLOW, DENY or ASK; anything else is to be taken as DENY.
	Action api.EgressAction
	// Inspect says that TLS has to be terminated so that each request can be
	// judged; Action is then what holds for the connection itself.
	Inspect bool
	// Rule is the rule that decided; nil if none matched.
	Rule *api.EgressRule
	// Reason is one sentence for people.
	Reason string
}

// Connect judges a connection before anything is dialled.
func (e *Egress) Connect(d Destination) Verdict { return Verdict{} }

// Request is one HTTP request to judge.
type Request struct {
	Method string
	// Path is the request's path as it was sent, escaped; it is normalised
	// before it is matched, and one that cannot be is denied.
	Path string
}

// Request judges one request on a connection that Connect allowed.
func (e *Egress) Request(d Destination, r Request) Verdict { return Verdict{} }

// Address judges the address that is about to be dialled for a destination.
// own are the host's own addresses.
func (e *Egress) Address(d Destination, a netip.Addr, own []netip.Addr) error {
	return errors.New("not written yet")
}
