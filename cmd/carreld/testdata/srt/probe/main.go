//go:build linux

// Probe is the attacker of the comparison with srt: a static program that tries
// one thing by every way it knows, and prints what came of each. What counts is
// what the world outside saw; only what it reads is told by its own words.
//
//	probe http HOST:PORT NAME         a request in clear text, NAME as its Host
//	probe https HOST:PORT SNI NAME    the same inside TLS with that SNI
//	probe dns SERVER NAME             a question to that name server, by UDP and TCP
//	probe lookup NAME                 a look-up by the system, and through any proxy
//	probe udp HOST:PORT               a datagram
//	probe icmp ADDR                   an echo request
//	probe unix ADDR                   connect to a Unix socket; "@": an abstract name
//	probe read FILE
//	probe write FILE                  make it, or write to it if it is there
//	probe replace DIR AWAY FILE       rename DIR, make it again, and FILE in it
//	probe ps                          every process's arguments
//	probe env                         every variable
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/net/proxy"
	"golang.org/x/sys/unix"
)

// patience is what one way may take: walls that drop packets answer nothing.
const patience = 10 * time.Second

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "probe VERB ARG...")
		os.Exit(2)
	}
	args := append(os.Args[2:], "", "", "")
	switch os.Args[1] {
	case "http":
		for _, w := range ways() {
			say(w.name, request(w, args[0], args[1], nil))
		}
	case "https":
		for _, w := range ways() {
			say(w.name, request(w, args[0], args[2], &tls.Config{ServerName: args[1], InsecureSkipVerify: true}))
		}
	case "dns":
		for _, network := range []string{"udp", "tcp"} {
			say(network, ask(network, args[0], args[1]))
		}
	case "lookup":
		lookup(args[0])
	case "udp":
		say("udp", datagram(args[0]))
	case "icmp":
		icmp(args[0])
	case "unix":
		c, err := net.DialTimeout("unix", args[0], patience)
		say("connect", err)
		if err == nil {
			c.Close()
		}
	case "read":
		b, err := os.ReadFile(args[0])
		say(string(b), err)
	case "write":
		say("write", os.WriteFile(args[0], []byte("written\n"), 0o755))
	case "replace":
		say("rename", os.Rename(args[0], args[1]))
		say("make", os.MkdirAll(filepath.Dir(args[2]), 0o755))
		say("write", os.WriteFile(args[2], []byte("written\n"), 0o755))
	case "ps":
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range files {
			b, err := os.ReadFile(f)
			say(strings.ReplaceAll(string(b), "\x00", " "), err)
		}
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	default:
		os.Exit(2)
	}
}

func say(what string, err error) {
	if err != nil {
		what += ": " + err.Error()
	}
	fmt.Println(what)
}

// way leads to a host: straight, or through what the environment names.
type way struct {
	name string
	dial func(ctx context.Context, addr string) (net.Conn, error)
	// absolute: the request names the host itself, as to an HTTP proxy.
	absolute bool
	auth     string
}

func ways() []way {
	straight := func(ctx context.Context, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	all := []way{{name: "straight", dial: straight}}
	seen := map[string]bool{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY", "FTP_PROXY"} {
		value := os.Getenv(name)
		u, err := url.Parse(value)
		if value == "" || err != nil || seen[value] {
			continue
		}
		seen[value] = true
		if strings.HasPrefix(u.Scheme, "socks") {
			all = append(all, way{name: name, dial: func(ctx context.Context, addr string) (net.Conn, error) {
				u := *u
				u.Scheme = "socks5"
				d, err := proxy.FromURL(&u, proxy.Direct)
				if err != nil {
					return nil, err
				}
				return d.(proxy.ContextDialer).DialContext(ctx, "tcp", addr)
			}})
			continue
		}
		auth := ""
		if u.User != nil {
			password, _ := u.User.Password()
			auth = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)) + "\r\n"
		}
		all = append(all,
			way{name: name + " CONNECT", dial: func(ctx context.Context, addr string) (net.Conn, error) {
				c, err := straight(ctx, u.Host)
				if err != nil {
					return nil, err
				}
				c.SetDeadline(time.Now().Add(patience))
				fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", addr, addr, auth)
				r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "CONNECT"})
				if err == nil && r.StatusCode != http.StatusOK {
					b, _ := io.ReadAll(io.LimitReader(r.Body, 200))
					err = fmt.Errorf("%s %q", r.Status, b)
				}
				if err != nil {
					c.Close()
					return nil, err
				}
				return c, nil
			}},
			way{name: name + " GET", absolute: true, auth: auth, dial: func(ctx context.Context, _ string) (net.Conn, error) { return straight(ctx, u.Host) }})
	}
	return all
}

// request asks for / by one way; inside TLS if conf is not nil.
func request(w way, addr, name string, conf *tls.Config) error {
	if w.absolute && conf != nil {
		return errors.New("for clear text only")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := w.dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if conf != nil {
		c = tls.Client(c, conf)
	}
	target := "/"
	if w.absolute {
		target = "http://" + addr + "/"
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n", target, name, w.auth); err != nil {
		return err
	}
	b := make([]byte, 300)
	n, err := io.ReadAtLeast(c, b, 1)
	if err != nil {
		return err
	}
	return fmt.Errorf("%q", b[:n])
}

// resolver asks one server only.
func resolver(network, server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
}

func ask(network, server, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := resolver(network, server).LookupHost(ctx, name)
	if err == nil {
		return fmt.Errorf("%v", a)
	}
	return err
}

func lookup(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := net.DefaultResolver.LookupHost(ctx, name)
	say(fmt.Sprint("system ", a), err)
	for _, w := range ways()[1:] {
		say(w.name, request(w, name+":80", name, nil))
	}
}

func datagram(addr string) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("a datagram"))
	return err
}

// icmp tries both kinds of sockets that send echo requests.
func icmp(addr string) {
	to := &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(addr).To4())}
	echo := []byte{8, 0, 0xf7, 0xfe, 0, 1, 0, 0} // type, code, checksum, id, sequence
	for name, kind := range map[string]int{"raw": unix.SOCK_RAW, "datagram": unix.SOCK_DGRAM} {
		fd, err := unix.Socket(unix.AF_INET, kind, unix.IPPROTO_ICMP)
		if err == nil {
			err = unix.Sendto(fd, echo, 0, to)
			unix.Close(fd)
		}
		say(name, err)
	}
}
