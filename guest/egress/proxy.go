package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// dialProxy connects to the host's own proxy, whose address is the user's word
// and not held against the rules, and has it lead to the destination. With
// clear it only connects: the request itself says where it goes.
func (c *conn) dialProxy(ctx context.Context, via *url.URL, clear bool) (net.Conn, error) {
	done, err := c.dialling(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	port := via.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[via.Scheme]
	}
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 20 * time.Second, Count: 6}}
	d.SetMultipathTCP(false)
	server, err := d.DialContext(ctx, "tcp", net.JoinHostPort(via.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("dial the host's proxy: %w", unplaced(err))
	}
	stop := context.AfterFunc(ctx, func() { server.SetDeadline(time.Unix(1, 0)) })
	out, err := c.throughProxy(ctx, server, via, clear)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		server.Close()
		return nil, err
	}
	return out, nil
}

func (c *conn) throughProxy(ctx context.Context, server net.Conn, via *url.URL, clear bool) (net.Conn, error) {
	if via.Scheme == "https" {
		t := tls.Client(server, &tls.Config{RootCAs: c.s.roots, ServerName: via.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS with the host's proxy: %w", unplaced(err))
		}
		server = t
	}
	if clear {
		return server, nil
	}
	ask := fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n", c.dest)
	if u := via.User; u != nil {
		password, _ := u.Password()
		ask += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(server, ask+"\r\n"); err != nil {
		return nil, fmt.Errorf("ask the host's proxy for %s: %w", c.dest, unplaced(err))
	}
	in := bufio.NewReader(io.LimitReader(server, maxProxyAnswer))
	answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, fmt.Errorf("the host's proxy gave no answer that can be read for %s", c.dest)
	}
	answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		return nil, &refusal{reason: fmt.Sprintf("The host's own proxy refuses it: %s.", text(answer.Status, 100))}
	}
	// A server that speaks first may have spoken already.
	if n := in.Buffered(); n > 0 {
		early, err := in.Peek(n)
		if err != nil {
			return nil, err
		}
		return &prefixed{Conn: server, pre: append([]byte(nil), early...)}, nil
	}
	return server, nil
}

// prefixed is a connection some bytes of which were read already.
type prefixed struct {
	net.Conn
	pre []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.pre) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.pre)
	if p.pre = p.pre[n:]; len(p.pre) == 0 {
		p.pre = nil
	}
	return n, nil
}

// CloseWrite ends what this side sends.
func (p *prefixed) CloseWrite() error { return closeWrite(p.Conn) }
