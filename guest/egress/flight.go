package egress

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// helloRetry is the random of a ServerHello that is a HelloRetryRequest: RFC
// 8446, 4.1.3.
var helloRetry = []byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// serverFirst looks at the beginning of what a server sends, piece by piece,
// until it is known whether it is a HelloRetryRequest.
type serverFirst struct {
	raw []byte // of the record that is not complete
	msg []byte // of the handshake message
	n   int    // records
}

var errServerHello = errors.New("the server's first message is not one of TLS")

// firstNeeded is the handshake header, the version and the random.
const firstNeeded = 4 + 2 + 32

func (s *serverFirst) feed(b []byte) (retry, known bool, err error) {
	s.raw = append(s.raw, b...)
	for len(s.raw) >= 5 {
		if s.raw[0] != recordHandshake {
			return false, true, nil // an alert: there is no second ClientHello after it
		}
		n := int(binary.BigEndian.Uint16(s.raw[3:]))
		if n == 0 || n > maxRecord || s.n > firstNeeded {
			return false, false, errServerHello
		}
		have := min(n, len(s.raw)-5)
		msg := append(s.msg[:len(s.msg):len(s.msg)], s.raw[5:5+have]...)
		if len(msg) > 0 && msg[0] != typeServerHello {
			return false, false, errServerHello
		}
		if len(msg) >= firstNeeded {
			return bytes.Equal(msg[6:firstNeeded], helloRetry), true, nil
		}
		if have < n {
			return false, false, nil
		}
		s.msg, s.raw = msg, s.raw[5+n:]
		s.n++
	}
	return false, false, nil
}
