package names

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ttl is how long an answer may be kept, in seconds. It could be for ever.
const ttl = 60

// MaxMessage is the longest query that is read, in bytes. A name takes at most
// 255 of them; the rest is room for options.
const MaxMessage = 4096

// reverse is where IPv4 addresses are looked up.
const reverse = ".in-addr.arpa"

// noDoH is the name that tells browsers whether to go round this resolver by
// DNS over HTTPS, which would only be refused.
const noDoH = "use-application-dns.net"

// Answer returns the answer to one DNS message, or nil where none is due: what
// is no query is not worth a word.
//
//   - A: the name's address, also if nothing may connect to it, because the
//     refusal of the connection can say why.
//   - PTR of such an address: its name.
//   - any other type: the name exists and has no such record.
//   - single labels, and what cannot be a host name: no such name.
func (t *Table) Answer(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	a := answer{head: dnsmessage.Header{
		ID: head.ID, Response: true, OpCode: head.OpCode,
		Authoritative: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true,
	}}
	if head.OpCode != 0 {
		a.head.RCode = dnsmessage.RCodeNotImplemented
		return a.pack()
	}
	if err := a.parse(&p); err != nil {
		a = answer{head: a.head}
		a.head.RCode = dnsmessage.RCodeFormatError
		return a.pack()
	}
	switch {
	case a.version != 0:
		a.extended = rcodeBadVersion
	case a.question.Class != dnsmessage.ClassINET && a.question.Class != dnsmessage.ClassANY:
		a.head.RCode = dnsmessage.RCodeRefused
	default:
		a.head.RCode = t.resolve(&a)
	}
	return a.pack()
}

// resolve finds what the question asks for.
func (t *Table) resolve(a *answer) dnsmessage.RCode {
	name, ok := canonical(a.question.Name.String())
	if !ok {
		return dnsmessage.RCodeNameError
	}
	wantA := a.question.Type == dnsmessage.TypeA || a.question.Type == dnsmessage.TypeALL
	switch {
	case name == "localhost" || strings.HasSuffix(name, ".localhost"):
		if wantA {
			a.addr = loopback
		}
	case strings.HasSuffix(name, reverse):
		return t.reverse(a, name)
	case strings.IndexByte(name, '.') < 0 || name == noDoH || strings.HasSuffix(name, ".arpa"):
		return dnsmessage.RCodeNameError
	case wantA:
		if a.addr, ok = t.Address(name); !ok {
			return dnsmessage.RCodeServerFailure
		}
	}
	return dnsmessage.RCodeSuccess
}

// reverse finds the name of an address.
func (t *Table) reverse(a *answer, name string) dnsmessage.RCode {
	addr, ok := parseReverse(name)
	if !ok {
		return dnsmessage.RCodeNameError
	}
	host, ok := "localhost", addr.IsLoopback()
	if !ok {
		host, ok = t.Name(addr)
	}
	if !ok {
		return dnsmessage.RCodeNameError
	}
	if a.question.Type == dnsmessage.TypePTR || a.question.Type == dnsmessage.TypeALL {
		a.host = host
	}
	return dnsmessage.RCodeSuccess
}

// parseReverse turns 4.3.2.1.in-addr.arpa into 1.2.3.4.
func parseReverse(name string) (netip.Addr, bool) {
	labels := strings.Split(strings.TrimSuffix(name, reverse), ".")
	if len(labels) != 4 {
		return netip.Addr{}, false
	}
	var b [4]byte
	for i, l := range labels {
		n, err := strconv.ParseUint(l, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != l {
			return netip.Addr{}, false
		}
		b[3-i] = byte(n)
	}
	return netip.AddrFrom4(b), true
}

// rcodeBadVersion is the extended code for an EDNS version that is not ours
// (RFC 6891, section 6.1.3).
const rcodeBadVersion = dnsmessage.RCode(16)

// answer is a message in the making.
type answer struct {
	head     dnsmessage.Header
	question dnsmessage.Question
	asked    bool
	// edns says that the query had an OPT record, version which.
	edns     bool
	version  uint8
	extended dnsmessage.RCode
	// One of these is the answer, or none.
	addr netip.Addr
	host string
}

var errQuery = errors.New("not a query")

// parse reads a whole query: one question and perhaps one OPT record.
func (a *answer) parse(p *dnsmessage.Parser) (err error) {
	if a.question, err = p.Question(); err != nil {
		return err
	}
	a.asked = true
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return errQuery
	}
	if err := p.SkipAllAnswers(); err != nil {
		return err
	}
	if err := p.SkipAllAuthorities(); err != nil {
		return err
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Type == dnsmessage.TypeOPT {
			if a.edns {
				return errQuery
			}
			a.edns, a.version = true, uint8(h.TTL>>16)
		}
		if err := p.SkipAdditional(); err != nil {
			return err
		}
	}
}

// pack returns the message. It is always shorter than the 512 bytes that any
// client takes: a name, at most one record, and an empty OPT.
func (a *answer) pack() []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), a.head)
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil && a.asked {
		err = b.Question(a.question)
	}
	if err == nil {
		err = b.StartAnswers()
	}
	rh := dnsmessage.ResourceHeader{Name: a.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	if err == nil && a.addr.IsValid() {
		err = b.AResource(rh, dnsmessage.AResource{A: a.addr.As4()})
	}
	if err == nil && a.host != "" {
		var host dnsmessage.Name
		if host, err = dnsmessage.NewName(a.host + "."); err == nil {
			err = b.PTRResource(rh, dnsmessage.PTRResource{PTR: host})
		}
	}
	if err == nil && a.edns {
		err = b.StartAdditionals()
		var opt dnsmessage.ResourceHeader
		if err == nil {
			err = opt.SetEDNS0(MaxMessage, a.extended, false)
		}
		if err == nil {
			err = b.OPTResource(opt, dnsmessage.OPTResource{})
		}
	}
	if err != nil {
		return nil
	}
	m, err := b.Finish()
	if err != nil {
		return nil
	}
	return m
}
