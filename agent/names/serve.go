package names

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/net/ipv4"
)

// streamIdle is how long a DNS client on TCP may stay silent.
const streamIdle = 10 * time.Second

// ServePackets answers queries over UDP until the socket is closed. An answer
// comes from the address that was asked, which need not be the socket's own.
func (t *Table) ServePackets(conn *net.UDPConn) error {
	p := ipv4.NewPacketConn(conn)
	if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
		return err
	}
	buf := make([]byte, MaxMessage+1)
	for failed := 0; ; {
		n, cm, from, err := p.ReadFrom(buf)
		if err != nil {
			// What became of an earlier answer may be reported here; such
			// an error is not the socket's end, but many in a row are.
			if failed++; errors.Is(err, net.ErrClosed) || failed > 100 {
				return err
			}
			continue
		}
		if failed = 0; n > MaxMessage {
			continue
		}
		a := t.Answer(buf[:n])
		if a == nil {
			continue
		}
		var out *ipv4.ControlMessage
		if cm != nil && cm.Dst.To4() != nil {
			out = &ipv4.ControlMessage{Src: cm.Dst}
		}
		_, _ = p.WriteTo(a, out, from)
	}
}

// ServeStream answers queries over TCP, one after the other, until the client
// ends, errs, or is silent for too long. It closes conn.
func (t *Table) ServeStream(conn net.Conn) {
	defer conn.Close()
	var buf [MaxMessage]byte
	for {
		_ = conn.SetDeadline(time.Now().Add(streamIdle))
		if _, err := io.ReadFull(conn, buf[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf[:2]))
		if n > len(buf) {
			return
		}
		if _, err := io.ReadFull(conn, buf[:n]); err != nil {
			return
		}
		a := t.Answer(buf[:n])
		if a == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(a)), uint16(len(a))), a...)); err != nil {
			return
		}
	}
}
