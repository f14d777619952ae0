//go:build linux

// Plain is a static program that knows nothing of proxies, certificates' places
// or sandboxes. It does, from inside a guest, what tests tell it to, and prints a
// line for each thing that it tried.
//
//	plain get URL...                 fetch, trusting any certificate
//	plain tcp ADDR...                connect, ask for /, show what comes back
//	plain udp ADDR...                send a datagram, wait for an answer
//	plain dns SERVER NAME...         look names up, by every type; "-": the system's server
//	plain raw ADDR                   sockets beneath TCP and UDP
//	plain tls [ADDR SNI HOST]...     a request in a TLS connection, each name as told; "-": none
//	plain send ADDR TEXT             TEXT as bytes (Go's escapes), show what comes back
//	plain hold ADDR COUNT            that many connections at once
//	plain half ADDR                  half-close: send, end, and then read
//	plain vsock CID PORT...          connect to a vsock port
//	plain scan NEEDLES               look for what must not be here: memory, files, disks
//	plain scan-files NEEDLES         the same in environments, arguments and files alone
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 2 * time.Minute

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "plain VERB ARG...")
		os.Exit(2)
	}
	verb, args := os.Args[1], os.Args[2:]
	switch verb {
	case "get":
		each(args, get)
	case "tcp":
		each(args, func(a string) string { return send(a, ask(a), false) })
	case "udp": // to whom nobody may answer, so silence shall not last
		each(args, func(a string) string { return udp(a, 3*time.Second) })
	case "refused": // which is not silence, however slow the machine
		each(args, func(a string) string { return udp(a, patience) })
	case "dns":
		each(args[1:], func(name string) string { return lookup(args[0], name) })
	case "raw":
		raw(args[0])
	case "tls":
		for ; len(args) >= 3; args = args[3:] {
			say(strings.Join(args[:3], " "), tlsRequest(args[0], args[1], args[2]))
		}
	case "send", "half":
		text := ask(args[0])
		if verb == "send" {
			var err error
			if text, err = strconv.Unquote("\"" + args[1] + "\""); err != nil {
				fmt.Fprintln(os.Stderr, args[1], err)
				os.Exit(2)
			}
		}
		say(args[0], send(args[0], text, verb == "half"))
	case "hold":
		n, _ := strconv.Atoi(args[1])
		hold(args[0], n)
	case "vsock":
		each(args[1:], func(p string) string { return vsock(args[0], p) })
	case "scan", "scan-files":
		scan(args[0], verb == "scan")
	default:
		os.Exit(2)
	}
}

func say(what, how string) { fmt.Printf("%s: %s\n", what, how) }

// each tries all at once and prints in order.
func each(args []string, f func(string) string) {
	out := make([]string, len(args))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i, a := range args {
		wg.Go(func() {
			slots <- struct{}{}
			out[i] = f(a)
			<-slots
		})
	}
	wg.Wait()
	for i, a := range args {
		say(a, out[i])
	}
}

func get(url string) string {
	t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	c := &http.Client{Transport: t, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := c.Get(url)
	if err != nil {
		return "error: " + err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 300))
	return fmt.Sprintf("%s %q %v", r.Status, b, err)
}

// ask is a proper request to a server at an address.
func ask(addr string) string {
	return "GET / HTTP/1.1\r\nHost: " + addr + "\r\nConnection: close\r\n\r\n"
}

func send(addr, text string, half bool) string {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "error: " + err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return "error: " + err.Error()
	}
	if half {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return "error: " + err.Error()
		}
	}
	b, err := io.ReadAll(io.LimitReader(c, 600))
	if err != nil {
		return fmt.Sprintf("error after %q: %v", b, err)
	}
	return fmt.Sprintf("%q", b)
}

func udp(addr string, wait time.Duration) string {
	begin := time.Now()
	took := func() string { return fmt.Sprintf(" (%d ms)", time.Since(begin).Milliseconds()) }
	c, err := net.Dial("udp", addr)
	if err != nil {
		return "error: " + err.Error() + took()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	b := make([]byte, 1500)
	for range 2 { // the second write sees the first one's refusal
		if _, err = c.Write(make([]byte, 1200)); err != nil {
			return "error: " + err.Error() + took()
		}
		n, err := c.Read(b)
		if err == nil {
			return fmt.Sprintf("answer %q", b[:min(n, 100)])
		}
		if !os.IsTimeout(err) {
			return "error: " + err.Error() + took()
		}
	}
	return "silence" + took()
}

func lookup(server, name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r := &net.Resolver{PreferGo: true}
	if server != "-" {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}
	}
	var out []string
	tell := func(kind string, v any, err error) {
		if err != nil {
			out = append(out, kind+"=none")
		} else {
			out = append(out, fmt.Sprintf("%s=%v", kind, v))
		}
	}
	a, err := r.LookupNetIP(ctx, "ip4", name)
	tell("A", a, err)
	a6, err := r.LookupNetIP(ctx, "ip6", name)
	tell("AAAA", a6, err)
	txt, err := r.LookupTXT(ctx, name)
	tell("TXT", len(txt), err)
	mx, err := r.LookupMX(ctx, name)
	tell("MX", len(mx), err)
	ns, err := r.LookupNS(ctx, name)
	tell("NS", len(ns), err)
	_, srv, err := r.LookupSRV(ctx, "", "", name)
	tell("SRV", len(srv), err)
	return strings.Join(out, " ")
}

// raw tries what lies beneath TCP and UDP. What could be sent is said; whether
// it arrived, the other side knows.
func raw(addr string) {
	ip := net.ParseIP(addr).To4()
	to := &unix.SockaddrInet4{Addr: [4]byte(ip)}
	echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
	for _, x := range []struct {
		name               string
		domain, kind, prot int
	}{
		{"icmp", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
		{"raw icmp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"gre", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE},
		{"raw ip", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{"sctp", unix.AF_INET, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP},
		{"packet", unix.AF_PACKET, unix.SOCK_RAW, 0x0300},
	} {
		fd, err := unix.Socket(x.domain, x.kind, x.prot)
		if err != nil {
			say(x.name, "no socket: "+err.Error())
			continue
		}
		tv := unix.Timeval{Sec: 1}
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		if x.domain == unix.AF_PACKET {
			err = unix.Sendto(fd, make([]byte, 60), 0, &unix.SockaddrLinklayer{Ifindex: 1, Halen: 6})
		} else {
			err = unix.Sendto(fd, echo, 0, to)
		}
		if err != nil {
			say(x.name, "not sent: "+err.Error())
		} else if n, _, err := unix.Recvfrom(fd, make([]byte, 1500), 0); err != nil {
			say(x.name, "sent, no answer: "+err.Error())
		} else {
			say(x.name, fmt.Sprintf("sent, %d bytes came", n))
		}
		unix.Close(fd)
	}
}

func tlsRequest(addr, sni, host string) string {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "error: " + err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	conf := &tls.Config{InsecureSkipVerify: true, ServerName: sni, NextProtos: []string{"http/1.1"}}
	if sni == "-" {
		conf.ServerName = ""
	}
	s := tls.Client(c, conf)
	if err := s.Handshake(); err != nil {
		return "error: " + err.Error()
	}
	head := "GET /who HTTP/1.1\r\nConnection: close\r\n"
	if host != "-" {
		head += "Host: " + host + "\r\n"
	}
	if _, err := io.WriteString(s, head+"\r\n"); err != nil {
		return "error: " + err.Error()
	}
	r, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil {
		return "error: " + err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(r.Body, 300))
	return fmt.Sprintf("%s %q", r.Status, b)
}

// hold opens n connections, says how many there are, and keeps them until its
// input ends.
func hold(addr string, n int) {
	var mu sync.Mutex
	var kept []net.Conn
	var wg sync.WaitGroup
	slots := make(chan struct{}, 128)
	for range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if c, err := net.DialTimeout("tcp", addr, patience); err == nil {
				mu.Lock()
				kept = append(kept, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	fmt.Printf("holding %d\n", len(kept))
	io.Copy(io.Discard, os.Stdin)
	for _, c := range kept {
		c.Close()
	}
}

func vsock(cid, port string) string {
	c, _ := strconv.ParseUint(cid, 10, 32)
	p, _ := strconv.ParseUint(port, 10, 32)
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return "no socket: " + err.Error()
	}
	defer unix.Close(fd)
	tv := unix.Timeval{Sec: 2}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: uint32(c), Port: uint32(p)}); err != nil {
		return "refused: " + err.Error()
	}
	// An API would answer this.
	unix.Write(fd, []byte("POST /carrel.v1.GuestService/List HTTP/1.1\r\nHost: carrel\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"))
	b := make([]byte, 256)
	n, err := unix.Read(fd, b)
	return fmt.Sprintf("OPEN %q %v", b[:max(n, 0)], err)
}
