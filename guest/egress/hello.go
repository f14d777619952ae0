package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/crypto/cryptobyte"
)

// Bounds of what is read before a connection is decided on.
const (
	// maxHello is the longest ClientHello, in bytes of handshake message. Browsers
	// with post-quantum key shares send about 2 KiB.
	maxHello = 64 << 10
	// maxHelloRecords is how many TLS records it may be spread over.
	maxHelloRecords = 200
	// maxRecord is the longest plaintext record: RFC 8446, 5.1.
	maxRecord = 1 << 14
)

// Record and handshake types: RFC 8446, B.1 to B.3.
const (
	recordChangeCipherSpec = 20
	recordAlert            = 21
	recordHandshake        = 22
	typeClientHello        = 1
	typeServerHello        = 2
	extServerName          = 0
	extEarlyData           = 42
	extECH                 = 0xfe0d // RFC 9849
	extECHOuter            = 0xfd00
	extESNI                = 0xffce // drafts before ECH
)

// clientHello is what is known of a client's first message.
type clientHello struct {
	// raw is all that was read of the stream, records and all, to send on or
	// replay.
	raw []byte
	// name is the server's name as sent: checked to hold only printable ASCII and
	// to be no address, but not canonical. Empty without one.
	name string
	// ech: there is an encrypted ClientHello, real or GREASE, or an ESNI.
	ech bool
	// early: the client means to send data before the handshake is done.
	early bool
	// legacy is the version field, tls.VersionTLS12 for everything modern.
	legacy uint16
}

// errNotTLS: the stream does not begin with a TLS handshake record.
var errNotTLS = errors.New("the connection does not begin with TLS")

// helloError says what is wrong with a ClientHello, in a sentence for people.
type helloError string

func (e helloError) Error() string { return string(e) }

// startsTLS says whether a stream that begins with b may be TLS. One byte is
// enough: no other protocol that is in use begins with 22.
func startsTLS(b []byte) bool { return len(b) > 0 && b[0] == recordHandshake }

// readHello reads a ClientHello and not a byte more. What it read is in raw even
// if it fails, so that a refusal can be said. room is asked before more than
// 16 KiB are held, and may refuse.
func readHello(r io.Reader, room func() bool) (clientHello, error) {
	var h clientHello
	msg, err := readHandshake(r, &h.raw, typeClientHello, room)
	if err != nil {
		return h, err
	}
	return h, h.parse(msg)
}

// readHandshake reads the records of one handshake message of the given type,
// and returns its body. A message has to end where its record does.
func readHandshake(r io.Reader, raw *[]byte, kind byte, room func() bool) ([]byte, error) {
	var msg []byte
	want := 4
	for n := 0; len(msg) < want; n++ {
		if n == maxHelloRecords {
			return nil, helloError(fmt.Sprintf("its first message is spread over more than %d records", maxHelloRecords))
		}
		body, typ, err := readRecord(r, raw, n == 0)
		if err != nil {
			return nil, err
		}
		if typ != recordHandshake {
			return nil, helloError("another record stands in the middle of its first message")
		}
		msg = append(msg, body...)
		if len(msg) >= 4 && want == 4 {
			if msg[0] != kind {
				return nil, helloError("its first message is of another kind than a handshake begins with")
			}
			want = 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
			if want > maxHello {
				return nil, helloError(fmt.Sprintf("its first message is longer than %d bytes", maxHello))
			}
			if want > maxRecord && !room() {
				return nil, helloError("too many connections send long first messages at once")
			}
		}
	}
	if len(msg) != want {
		return nil, helloError("something follows its first message in the same record")
	}
	return msg[4:], nil
}

// readRecord reads one plaintext record and appends it to raw.
func readRecord(r io.Reader, raw *[]byte, first bool) (body []byte, typ byte, err error) {
	at := len(*raw)
	*raw = append(*raw, 0, 0, 0, 0, 0)
	head := (*raw)[at:]
	// The first byte alone, so that what is not TLS is known without waiting.
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		*raw = (*raw)[:at]
		return nil, 0, err
	}
	if first && !startsTLS(head) {
		*raw = (*raw)[:at+1]
		return nil, 0, errNotTLS
	}
	if n, err := io.ReadFull(r, head[1:]); err != nil {
		*raw = (*raw)[:at+1+n]
		return nil, 0, cut(err)
	}
	typ = head[0]
	n := int(binary.BigEndian.Uint16(head[3:]))
	switch {
	case head[1] != 3:
		return nil, 0, helloError("it does not speak TLS")
	case n == 0 || n > maxRecord:
		return nil, 0, helloError("a record of its handshake is empty or too long")
	}
	at = len(*raw)
	*raw = append(*raw, make([]byte, n)...)
	if got, err := io.ReadFull(r, (*raw)[at:]); err != nil {
		*raw = (*raw)[:at+got]
		return nil, 0, cut(err)
	}
	return (*raw)[at:], typ, nil
}

// cut makes an end in the middle of a record one that is not taken for order.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parse reads the body of a ClientHello: RFC 8446, 4.1.2.
func (h *clientHello) parse(body []byte) error {
	const bad = helloError("its first message cannot be read")
	s := cryptobyte.String(body)
	var random []byte
	var session, suites, compression, extensions cryptobyte.String
	if !s.ReadUint16(&h.legacy) || !s.ReadBytes(&random, 32) || !s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || len(suites) == 0 || len(suites)%2 != 0 ||
		!s.ReadUint8LengthPrefixed(&compression) || len(compression) == 0 {
		return bad
	}
	if h.legacy>>8 != 3 {
		return helloError("it does not speak TLS")
	}
	if s.Empty() {
		return nil
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return bad
	}
	seen := map[uint16]bool{}
	for !extensions.Empty() {
		var typ uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&typ) || !extensions.ReadUint16LengthPrefixed(&data) {
			return bad
		}
		if seen[typ] {
			return helloError("its first message holds an extension twice")
		}
		seen[typ] = true
		switch typ {
		case extServerName:
			if err := h.serverName(data); err != nil {
				return err
			}
		case extECH, extECHOuter, extESNI:
			h.ech = true
		case extEarlyData:
			h.early = true
		}
	}
	return nil
}

// serverName reads the server_name extension: RFC 6066, 3. Exactly one name.
func (h *clientHello) serverName(data cryptobyte.String) error {
	const bad = helloError("the name of the server in its first message cannot be read")
	var list, name cryptobyte.String
	var typ uint8
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() ||
		!list.ReadUint8(&typ) || typ != 0 || !list.ReadUint16LengthPrefixed(&name) || len(name) == 0 || len(name) > 255 {
		return bad
	}
	if !list.Empty() {
		return helloError("its first message names more than one server")
	}
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return bad
		}
	}
	if _, err := netip.ParseAddr(string(name)); err == nil {
		return helloError("its first message names an address where a name has to be")
	}
	h.name = string(name)
	return nil
}
