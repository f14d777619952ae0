package proxy

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
)

// SOCKS 5 (RFC 1928) with names and passwords (RFC 1929).
const (
	socksVersion  = 5
	socksPassword = 2    // the method of RFC 1929
	socksNone     = 0xff // no acceptable method
	socksConnect  = 1

	socksIPv4 = 1
	socksName = 3
	socksIPv6 = 4

	passwordVersion = 1
)

// Answers to a request.
const (
	socksDone       = 0
	socksFailed     = 1
	socksNoCommand  = 7
	socksNoAddress  = 8
	socksWrongHello = -1 // nothing is answered
)

// socks serves one client that speaks SOCKS 5.
func (p *Proxy) socks(ctx context.Context, c *client) {
	task, host, port, answer, err := p.socksAsk(c)
	if err != nil {
		if answer != socksWrongHello {
			socksAnswer(c.conn, byte(answer))
			linger(c)
		}
		return
	}
	c.asked()
	s, err := p.open(ctx, host, port, task)
	if err != nil {
		socksAnswer(c.conn, socksFailed)
		return
	}
	defer p.let(s)
	// Whether the host lets it out shows on the connection.
	if socksAnswer(c.conn, socksDone) == nil {
		carry(c, s)
	}
}

// socksAnswer says what became of a request. The address that the connection
// has outside is not known.
func socksAnswer(w io.Writer, code byte) error {
	_, err := w.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

// socksAsk reads and answers up to the request. On an error, answer is what the
// client is to be told.
func (p *Proxy) socksAsk(c *client) (task, host string, port uint16, answer int, err error) {
	fail := func(answer int, format string, a ...any) (string, string, uint16, int, error) {
		return "", "", 0, answer, fmt.Errorf(format, a...)
	}
	methods, err := counted(c.r, socksVersion)
	if err != nil {
		return fail(socksWrongHello, "read a SOCKS hello: %w", err)
	}
	chosen := byte(socksNone)
	for _, m := range methods {
		if m == socksPassword {
			chosen = m
		}
	}
	if _, err := c.conn.Write([]byte{socksVersion, chosen}); err != nil || chosen == socksNone {
		return fail(socksWrongHello, "a client offers no password: %v", err)
	}
	name, err := counted(c.r, passwordVersion)
	if err != nil {
		return fail(socksWrongHello, "read a name: %w", err)
	}
	password, err := short(c.r)
	if err != nil {
		return fail(socksWrongHello, "read a password: %w", err)
	}
	task, ok := p.allowed(string(name), string(password))
	code := byte(0)
	if !ok {
		code = 1
	}
	if _, err := c.conn.Write([]byte{passwordVersion, code}); err != nil || !ok {
		return fail(socksWrongHello, "a wrong password: %v", err)
	}
	var b [4]byte // version, command, reserved, kind of address
	if _, err := io.ReadFull(c.r, b[:]); err != nil || b[0] != socksVersion {
		return fail(socksWrongHello, "read a SOCKS request: %v", err)
	}
	if b[1] != socksConnect {
		return fail(socksNoCommand, "command %d", b[1])
	}
	switch b[3] {
	case socksIPv4:
		var a [4]byte
		_, err = io.ReadFull(c.r, a[:])
		host = netip.AddrFrom4(a).String()
	case socksIPv6:
		var a [16]byte
		_, err = io.ReadFull(c.r, a[:])
		host = netip.AddrFrom16(a).String()
	case socksName:
		var n []byte
		n, err = short(c.r)
		host = string(n)
	default:
		return fail(socksNoAddress, "an address of kind %d", b[3])
	}
	if err != nil {
		return fail(socksWrongHello, "read an address: %w", err)
	}
	if _, err := io.ReadFull(c.r, b[:2]); err != nil {
		return fail(socksWrongHello, "read a port: %w", err)
	}
	port = binary.BigEndian.Uint16(b[:2])
	if err := checkHost(host); err != nil || port == 0 {
		return fail(socksFailed, "port %d: %v", port, err)
	}
	return task, host, port, socksDone, nil
}

// counted reads a version, which has to be v, and a short string.
func counted(r io.Reader, v byte) ([]byte, error) {
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	if b[0] != v {
		return nil, fmt.Errorf("version %d", b[0])
	}
	return short(r)
}

// short reads a string of at most 255 bytes, its length before it.
func short(r io.Reader) ([]byte, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, n[0])
	_, err := io.ReadFull(r, b)
	return b, err
}
