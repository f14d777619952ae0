package egresstest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The cable's two ends. Everything that is not the host's own lies behind
// Gateway. The addresses are in nobody's list of special ones, so that only
// what is under test refuses them; the namespaces keep them from their owners.
const (
	HostAddr  = "93.184.216.2"
	HostAddr6 = "2606:2800:220:1::2"
	Gateway   = "93.184.216.1"
	Gateway6  = "2606:2800:220:1::1"
	// Resolver is the host's own name server; PublicResolvers are others.
	Resolver = "93.184.216.53"
	// Private and Metadata are addresses that no name may lead to.
	Private  = "10.11.12.13"
	Metadata = "169.254.169.254"
)

// PublicResolvers answer DNS as the world's own server does.
var PublicResolvers = []string{"8.8.8.8", "1.1.1.1"}

// World is the small internet. All methods may be called at any time from any
// goroutine.
type World struct {
	// CA is the authority that the host trusts.
	CA *Authority
	// DNS answers for every name.
	DNS *DNS
	// Canary listens on the host's own addresses: nobody may reach it.
	Canary *Canary
	// Tap counts the packets on the cable.
	Tap *Tap
	// Git, API and Registry are what the servers of those kinds keep.
	Git      *Git
	API      *API
	Registry *Registry

	dir   string // of the host's files that are replaced, and of the servers
	ns    *os.File
	hosts map[string]*Host
	stop  []func()
	wait  sync.WaitGroup
}

// New builds the world around this process, which Inside has put into namespaces
// of its own: the process is on the host's end of the cable.
func New(t testing.TB) *World {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Fatal("egresstest.New belongs inside the namespaces that Inside makes")
	}
	w := &World{dir: t.TempDir(), hosts: map[string]*Host{}, DNS: newDNS()}
	t.Cleanup(w.close)
	var err error
	if w.CA, err = newAuthority("Carrel's test world"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what string
		f    func() error
	}{
		{"lay the cable", w.cable},
		{"replace the host's files", w.files},
		{"start the servers", func() error { return w.serve(t) }},
		{"listen as the canary", func() (err error) { w.Canary, err = newCanary(w); return err }},
		{"tap the cable", func() (err error) { w.Tap, err = newTap(t, w); return err }},
	} {
		if err := step.f(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
	}
	return w
}

// Host returns the server that has a name.
func (w *World) Host(name string) *Host {
	h := w.hosts[name]
	if h == nil {
		panic("the world has no host " + name)
	}
	return h
}

// Reset forgets what all servers and the tap have seen.
func (w *World) Reset() {
	w.DNS.Reset()
	w.Tap.Reset()
	w.Canary.Reset()
	for _, h := range w.hosts {
		h.Reset()
	}
}

// inside runs f on a thread that is in the world's namespace. Sockets that it
// makes stay there.
func (w *World) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		if err := unix.Setns(int(w.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the world: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// cable makes the world's namespace and joins it to ours.
func (w *World) cable() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			w.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink", MTU: 1500}, PeerName: "cable", PeerNamespace: netlink.NsFd(w.ns.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make a pair of network cards: %w", err)
	}
	if err := up("uplink", HostAddr+"/24", HostAddr6+"/64"); err != nil {
		return err
	}
	err := w.inside(func() error { return up("cable", Gateway+"/24", Gateway6+"/64") })
	if err != nil {
		return err
	}
	for _, gw := range []string{Gateway, Gateway6} {
		r := &netlink.Route{LinkIndex: veth.Index, Gw: net.ParseIP(gw)}
		if l, err := netlink.LinkByName("uplink"); err == nil {
			r.LinkIndex = l.Attrs().Index
		}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("route by %s: %w", gw, err)
		}
	}
	return nil
}

// up brings loopback and a card up.
func up(name string, addrs ...string) error {
	for _, n := range []string{"lo", name} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		if n == "lo" {
			continue
		}
		for _, a := range addrs {
			if err := addAddr(l, a); err != nil {
				return err
			}
		}
	}
	return nil
}

func addAddr(l netlink.Link, a string) error {
	addr, err := netlink.ParseAddr(a)
	if err != nil {
		return err
	}
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD // nobody else is on the cable to ask
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	return nil
}

// files gives this mount namespace the world's name server and authority, and no
// other.
func (w *World) files() error {
	etc := filepath.Join(w.dir, "etc")
	// The bundle by which servers are verified, and the place for authorities
	// of the organisation's own, from which guests are to learn them.
	for path, file := range map[string]string{"/etc/ssl/certs": "ca-certificates.crt", "/usr/local/share/ca-certificates": "world.crt"} {
		dir := filepath.Join(etc, filepath.Base(path))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), w.CA.PEM, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(dir, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w (the package ca-certificates makes that folder)", path, err)
		}
	}
	for path, text := range map[string]string{
		"/etc/resolv.conf":   "nameserver " + Resolver + "\noptions timeout:30\n", // no question is put twice because a busy machine is slow to answer
		"/etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	} {
		file := filepath.Join(etc, filepath.Base(path))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return fmt.Errorf("%w (the test replaces it in its own view of the files, so it has to be there)", err)
		}
		if err := unix.Mount(file, real, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", real, err)
		}
	}
	return nil
}

func newDNS() *DNS {
	return &DNS{zone: map[string][]netip.Addr{}, queue: map[string][][]netip.Addr{}}
}

// serve starts every server of the world.
func (w *World) serve(t testing.TB) error {
	for _, h := range w.everyHost(t) {
		w.add(h)
	}
	foreign, err := newAuthority("An authority that nobody knows")
	if err != nil {
		return err
	}
	return w.inside(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range append([]string{Resolver}, PublicResolvers...) {
			if err := addAddr(lo, a+"/32"); err != nil {
				return err
			}
			if err := w.serveDNS(a); err != nil {
				return err
			}
		}
		seen := map[*Host]bool{}
		for _, h := range w.hosts {
			if seen[h] {
				continue
			}
			seen[h] = true
			for _, a := range h.Addrs {
				bits := "/32"
				if netip.MustParseAddr(a).Is6() {
					bits = "/128"
				}
				if err := addAddr(lo, a+bits); err != nil {
					return err
				}
				if err := w.serveHTTP(h, a, foreign); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// add makes a host known by its names.
func (w *World) add(h *Host) {
	h.Name = h.names[0]
	for _, n := range h.names {
		w.hosts[n] = h
		w.DNS.Set(n, h.Addrs...)
	}
}

func (w *World) serveDNS(addr string) error {
	at := net.JoinHostPort(addr, "53")
	p, err := net.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		p.Close()
		return err
	}
	for _, s := range []*dns.Server{{PacketConn: p, Handler: w.DNS}, {Listener: l, Handler: w.DNS}} {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		w.stop = append(w.stop, func() { s.Shutdown() })
		w.wait.Go(func() { s.ActivateAndServe() })
		<-ready
	}
	return nil
}

// TLSPorts and ClearPorts are where every host listens.
var (
	TLSPorts   = []string{"443", "8443"}
	ClearPorts = []string{"80", "8080"}
)

func (w *World) serveHTTP(h *Host, addr string, foreign *Authority) error {
	for _, port := range append(append([]string(nil), TLSPorts...), ClearPorts...) {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, port))
		if err != nil {
			return err
		}
		s := &http.Server{
			Handler: h, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					h.connected()
				}
			},
		}
		s.Protocols = new(http.Protocols)
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetHTTP2(true)
		serve := func() error { return s.Serve(l) }
		if port == TLSPorts[0] || port == TLSPorts[1] {
			s.TLSConfig = &tls.Config{GetCertificate: h.certificate(w.CA, foreign)}
			serve = func() error { return s.ServeTLS(l, "", "") }
		}
		w.stop = append(w.stop, func() { s.Close(); l.Close() })
		w.wait.Go(func() {
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				log.Printf("the server of %s:%s ended: %v", addr, port, err)
			}
		})
	}
	return nil
}

// close ends the servers; the namespaces end with the process.
func (w *World) close() {
	for i := len(w.stop) - 1; i >= 0; i-- {
		w.stop[i]()
	}
	w.stop = nil
	w.wait.Wait()
	if w.ns != nil {
		w.ns.Close()
	}
}

// Unplug takes the host's one card down, with its routes and its addresses of
// IPv6, as a laptop's does that leaves its network.
func (w *World) Unplug() error {
	l, err := netlink.LinkByName("uplink")
	if err == nil {
		err = netlink.LinkSetDown(l)
	}
	return err
}

// Plug brings it back.
func (w *World) Plug() error {
	l, err := netlink.LinkByName("uplink")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	if err := addAddr(l, HostAddr6+"/64"); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	for _, gw := range []string{Gateway, Gateway6} {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route by %s: %w", gw, err)
		}
	}
	return nil
}

// SetResolver makes another address the host's name server; one that is empty is
// none at all.
func (w *World) SetResolver(addr string) error {
	text := ""
	if addr != "" {
		text = "nameserver " + addr + "\n"
	}
	// In place: the file is mounted over the machine's.
	return os.WriteFile(filepath.Join(w.dir, "etc", "resolv.conf"), []byte(text), 0o644)
}
