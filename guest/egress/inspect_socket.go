package egress

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// A WebSocket is the one protocol that may follow HTTP on a connection. Once the
// server has agreed its bytes pass unread: they are counted, and the bounds of the
// request that asked for it hold.

// upgrade says whether a request asks for a WebSocket: RFC 6455, 4.1. An offer
// of h2c, which some clients make with every request, is not passed on, and the
// request goes its way without it (RFC 9110, 7.8); any other is refused.
func (i *inspection) upgrade(r *http.Request) (bool, *bad) {
	offers := r.Header["Upgrade"]
	if len(offers) == 0 {
		return false, nil
	}
	if r.ProtoMajor == 1 && len(offers) == 1 && strings.EqualFold(offers[0], "h2c") {
		r.Header.Del("Upgrade")
		r.Header.Del("Http2-Settings")
		return false, nil
	}
	const no = http.StatusBadRequest
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-Websocket-Key"))
	switch {
	case r.ProtoMajor != 1 || r.ProtoMinor != 1 || !isWebSocket(offers):
		return false, &bad{no, "Only a WebSocket may be upgraded to."}
	case r.Method != http.MethodGet || r.ContentLength != 0 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade"),
		err != nil || len(key) != 16 || len(r.Header["Sec-Websocket-Key"]) != 1 || r.Header.Get("Sec-Websocket-Version") != "13":
		return false, &bad{no, "The WebSocket is not asked for in the way of RFC 6455."}
	}
	return true, nil
}

// switched holds an answer that begins a WebSocket against what was asked for: a
// server that was made to say 101 does not know the key.
func (x *exchange) switched(res *http.Response) error {
	key := x.in.Header.Get("Sec-Websocket-Key")
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455, 1.3
	body, ok := res.Body.(io.ReadWriteCloser)
	if !x.upgrade || !ok || res.Header.Get("Sec-Websocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
		return errors.New("it switched to another protocol than a WebSocket that was asked for")
	}
	res.Body = &socket{ReadWriteCloser: body, x: x}
	return nil
}

// socket is a WebSocket's way to the server.
type socket struct {
	io.ReadWriteCloser
	x *exchange
}

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	s.x.down.Add(int64(n))
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	if up := s.x.j.MaxUp; up > 0 && headSize(s.x.in)+s.x.up.Load()+int64(len(p)) > up {
		err := tooMuch(up)
		s.x.stop(err)
		return 0, err
	}
	n, err := s.ReadWriteCloser.Write(p)
	s.x.up.Add(int64(n))
	return n, err
}

// CloseWrite ends what the server is sent.
func (s *socket) CloseWrite() error {
	if c, ok := s.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return net.ErrClosed
}
