package proxy

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// refuseTime is how long a client may take to read why it is not served.
const refuseTime = 5 * time.Second

// hop are the header fields that are between a client and its proxy (RFC 9110,
// 7.6.1). An upgrade would be one to another protocol on a connection that is
// for one request; who wants that uses CONNECT.
var hop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Upgrade",
}

// http serves one request: a tunnel, or a request for an http URL. The latter
// has a connection of its own, so that what the host decides is about it alone.
func (p *Proxy) http(ctx context.Context, c *client) {
	r, err := http.ReadRequest(c.r)
	if err != nil || !wellFormed(r.Header) {
		refuse(c, http.StatusBadRequest, "this is not a request that a proxy understands", "")
		return
	}
	task, ok := p.basic(r.Header.Get("Proxy-Authorization"))
	if !ok {
		refuse(c, http.StatusProxyAuthRequired, "the proxy serves its own guest only: use the address in HTTP_PROXY, with its name and password",
			"Proxy-Authenticate: Basic realm=\"carrel\"\r\n")
		return
	}
	if r.Method == http.MethodConnect {
		p.tunnel(ctx, c, r, task)
	} else {
		p.forward(ctx, c, r, task)
	}
}

// wellFormed says whether all fields are such that nobody reads them otherwise.
func wellFormed(h http.Header) bool {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return false
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return false
			}
		}
	}
	return true
}

// basic reads a Proxy-Authorization (RFC 7617).
func (p *Proxy) basic(field string) (task string, ok bool) {
	scheme, coded, _ := strings.Cut(field, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", false
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(coded))
	if err != nil {
		return "", false
	}
	name, password, ok := strings.Cut(string(b), ":")
	if !ok {
		return "", false
	}
	return p.allowed(name, password)
}

// refuse answers with an error, and ends the connection so that it is read.
func refuse(c *client, status int, why, fields string) {
	_ = c.conn.SetDeadline(time.Now().Add(refuseTime))
	c.head.left = -1
	body := "carrel: " + why + "\n"
	_, err := fmt.Fprintf(c.conn, "HTTP/1.1 %d %s\r\n%sContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), fields, len(body), body)
	if err == nil && c.conn.CloseWrite() == nil {
		linger(c)
	}
}

// tunnel serves CONNECT host:port.
func (p *Proxy) tunnel(ctx context.Context, c *client, r *http.Request, task string) {
	host, port, err := hostPort(r.Host, "")
	if err != nil {
		refuse(c, http.StatusBadRequest, "CONNECT to what is not host:port: "+err.Error(), "")
		return
	}
	c.asked()
	s, err := p.open(ctx, host, port, task)
	if err != nil {
		refuse(c, http.StatusBadGateway, "the host takes no connections now", "")
		return
	}
	defer p.let(s)
	// Whether the host lets it out shows on the connection.
	if _, err := c.conn.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err == nil {
		carry(c, s)
	}
}

// forward serves a request for an http URL:
//
//  1. the request, as the server is to see it, to the host
//  2. what comes back, byte by byte, to the client
//  3. the end: a second request on the connection is never read, since it may
//     be for another server
func (p *Proxy) forward(ctx context.Context, c *client, r *http.Request, task string) {
	if r.URL.Scheme != "http" || r.URL.Host == "" {
		refuse(c, http.StatusBadRequest, "a proxy is asked for http://host/path, or for CONNECT host:port", "")
		return
	}
	host, port, err := hostPort(r.URL.Host, "80")
	if err != nil {
		refuse(c, http.StatusBadRequest, "the URL's host cannot be meant: "+err.Error(), "")
		return
	}
	c.asked()
	s, err := p.open(ctx, host, port, task)
	if err != nil {
		refuse(c, http.StatusBadGateway, "the host takes no connections now", "")
		return
	}
	defer p.let(s)
	for _, named := range r.Header["Connection"] {
		for f := range strings.SplitSeq(named, ",") {
			r.Header.Del(strings.TrimSpace(f))
		}
	}
	for _, f := range hop {
		r.Header.Del(f)
	}
	if _, given := r.Header["User-Agent"]; !given {
		r.Header["User-Agent"] = nil // Write would say its own
	}
	// The URL is where it goes, and says so (RFC 9112, 3.2.2).
	r.Host, r.Close = r.URL.Host, true
	var up sync.WaitGroup
	up.Go(func() {
		if r.Write(s) != nil {
			linger(c) // the host may have answered before the end of the request
		}
	})
	down(c, s)
	// What of the request is not sent yet nobody wants any more.
	_ = s.Close()
	_ = c.conn.SetReadDeadline(time.Now().Add(lingering))
	up.Wait()
}
