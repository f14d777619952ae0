package egress

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// A real proxy, squid, with a password, and a hosts file of its own: the name
// www.example is known to it alone.
func TestSquid(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tlsPort := uint32(ln.Addr().(*net.TCPAddr).Port)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s := tls.Server(c, &tls.Config{Certificates: certs(t, ca)})
				io.Copy(s, s)
				s.CloseWrite()
			}()
		}
	}()
	defer func() {
		ln.Close()
		<-done
	}()
	webPort := uint32(plainOrigin(t))
	squid := startSquid(t, tlsPort)

	w := newWorld(t, nil)
	rules := []*api.EgressRule{allow("www.example", tlsPort), allow("other.example", tlsPort), {Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "www.example", Ports: []uint32{webPort}, Inspect: true}}
	for _, login := range []string{"", "user:wrong@", "user:secret@"} {
		up := "http://" + login + squid
		w.upstream(&api.EdgeUpstream{HttpsProxy: up, HttpProxy: up}, rules...)
		good := login == "user:secret@"

		conn := w.open("www.example", tlsPort)
		c := tls.Client(conn, &tls.Config{ServerName: "www.example", RootCAs: ca.Pool()})
		if err := says(c); (err == nil) != good {
			t.Errorf("TLS as %q: %v", login, err)
		}
		conn.Close()

		conn = w.open("www.example", webPort)
		fmt.Fprintf(conn, "GET /x?y HTTP/1.1\r\nHost: www.example:%d\r\nConnection: close\r\n\r\n", webPort)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("HTTP as %q: %v", login, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		if want := fmt.Sprintf("www.example:%d /x?y via", webPort); (res.StatusCode == 200) != good || good && (!strings.HasPrefix(string(body), want) || strings.HasSuffix(string(body), `via ""`)) {
			t.Errorf("HTTP as %q: %s, %q", login, res.Status, body)
		}
		conn.Close()
	}
	// The proxy does not know this name.
	conn := w.open("other.example", tlsPort)
	if err := says(tls.Client(conn, &tls.Config{ServerName: "other.example", RootCAs: ca.Pool()})); err == nil {
		t.Error("other.example was reached")
	}
	conn.Close()
	if lookups, dials := w.outside(); len(lookups)+len(dials) > 0 {
		t.Errorf("resolved %q, dialled %v", lookups, dials)
	}
}

// startSquid starts squid on the loopback and returns its address.
func startSquid(t *testing.T, connectPort uint32) string {
	t.Helper()
	bin := "/usr/sbin/squid"
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("squid is missing: %v (run scripts/setup)", err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	dir, err := os.MkdirTemp("", "squid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// Squid refuses to run as root.
	var as *syscall.Credential
	if os.Geteuid() == 0 {
		as = &syscall.Credential{Uid: 65534, Gid: 65534}
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	hash, err := exec.Command("openssl", "passwd", "-apr1", "secret").Output()
	if err != nil {
		t.Fatalf("openssl passwd: %v", err)
	}
	passwords := file("passwords", "user:"+string(hash))
	hosts := file("hosts", "127.0.0.1 www.example\n")
	conf := file("squid.conf", fmt.Sprintf(`http_port %[1]s
visible_hostname squid.test
hosts_file %[2]s
dns_nameservers 127.0.0.1
dns_timeout 1 second
positive_dns_ttl 1 second
negative_dns_ttl 1 second
pid_filename %[4]s/pid
access_log none
cache_log %[4]s/cache.log
coredump_dir %[4]s
cache deny all
shutdown_lifetime 0 seconds
auth_param basic program /usr/lib/squid/basic_ncsa_auth %[3]s
auth_param basic children 2
acl known proxy_auth REQUIRED
acl TLS port %[5]d
acl CONNECT method CONNECT
http_access deny CONNECT !TLS
http_access allow known
http_access deny all
`, addr, hosts, passwords, dir, connectPort))
	cmd := exec.Command(bin, "-N", "-n", fmt.Sprintf("carrel%d", os.Getpid()), "-f", conf) // the name is that of its shared memory
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: as}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // so that it takes its shared memory away
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr
		}
		select {
		case <-exited:
			log, _ := os.ReadFile(filepath.Join(dir, "cache.log"))
			t.Fatalf("squid ended: %s %s", out.String(), log)
		default:
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "cache.log"))
			t.Fatalf("squid does not listen: %s %s", out.String(), log)
		}
	}
}
