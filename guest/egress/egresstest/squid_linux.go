package egresstest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The one who may use a Squid.
const (
	ProxyUser     = "user"
	ProxyPassword = "word-of-the-proxy"
)

// Squid is a real proxy on the loopback, which asks for a password.
type Squid struct {
	// Addr is where it listens.
	Addr string

	t    testing.TB
	dir  string
	stop func()
}

// StartSquid starts one that lets CONNECT reach some ports and no others. It
// knows the names of hosts, lines as in /etc/hosts, and asks a name server at
// port 53 of an address for all others.
func StartSquid(t testing.TB, hosts, nameserver string, connectPorts ...uint32) *Squid {
	t.Helper()
	bin := "/usr/sbin/squid"
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("squid is missing: %v (run scripts/setup)", err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Squid{Addr: free.Addr().String(), t: t}
	free.Close()
	if s.dir, err = os.MkdirTemp("", "squid"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	// Squid refuses to run as root.
	var as *syscall.Credential
	if os.Geteuid() == 0 {
		as = &syscall.Credential{Uid: 65534, Gid: 65534}
		if err := os.Chown(s.dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	hash, err := exec.Command("openssl", "passwd", "-apr1", ProxyPassword).Output()
	if err != nil {
		t.Fatalf("openssl passwd: %v", err)
	}
	for name, content := range map[string]string{
		"passwords": ProxyUser + ":" + string(hash), "hosts": hosts, "squid.conf": s.conf(nameserver, connectPorts),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The service's name is that of its shared memory, which all see.
	cmd := exec.Command(bin, "-N", "-n", filepath.Base(s.dir), "-f", filepath.Join(s.dir, "squid.conf"))
	cmd.Dir, cmd.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: as}
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
	s.stop = func() {
		cmd.Process.Signal(syscall.SIGTERM) // so that it takes its shared memory away
		select {
		case <-exited:
		case <-time.After(2 * time.Minute):
			cmd.Process.Kill()
			<-exited
		}
	}
	t.Cleanup(s.stop)
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", s.Addr)
		if err == nil {
			c.Close()
			return s
		}
		select {
		case <-exited:
			t.Fatalf("squid ended: %s %s", out.String(), s.read("cache.log"))
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("squid does not listen: %s %s", out.String(), s.read("cache.log"))
		}
	}
}

// Stop ends it. It may be called twice.
func (s *Squid) Stop() { s.stop() }

// Log are the requests that it was sent, a line each: the status, the method and
// what was asked for.
func (s *Squid) Log() string { return s.read("access.log") }

func (s *Squid) read(name string) string {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil && !os.IsNotExist(err) {
		s.t.Error(err)
	}
	return string(b)
}

func (s *Squid) conf(nameserver string, connectPorts []uint32) string {
	return fmt.Sprintf(`http_port %[1]s
visible_hostname squid.test
hosts_file %[2]s/hosts
dns_nameservers %[3]s
dns_timeout 1 second
positive_dns_ttl 1 second
negative_dns_ttl 1 second
pid_filename %[2]s/pid
logformat short %%>Hs %%rm %%ru
access_log stdio:%[2]s/access.log short
buffered_logs off
cache_log %[2]s/cache.log
coredump_dir %[2]s
cache deny all
shutdown_lifetime 0 seconds
auth_param basic program /usr/lib/squid/basic_ncsa_auth %[2]s/passwords
auth_param basic children 2
acl known proxy_auth REQUIRED
acl TLS port %[4]s
acl CONNECT method CONNECT
http_access deny CONNECT !TLS
http_access allow known
http_access deny all
`, s.Addr, s.dir, nameserver, strings.Trim(fmt.Sprint(connectPorts), "[]"))
}
