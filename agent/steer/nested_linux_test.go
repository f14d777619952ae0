package steer

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestNested: a container behind a bridge is steered too, by sk_lookup.
func TestNested(t *testing.T) {
	s, way := inside(t)
	if s == nil {
		return
	}
	if way != SkLookup {
		return // with nftables only the namespace itself is
	}
	answer(t, s)
	ns, err := container()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	in := func(f func()) {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine
			err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			if err == nil {
				f()
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	in(func() {
		wantAnswer(t, "93.184.216.34:443", "steered to 93.184.216.34:443 from 172.17.0.2")
		c, err := net.Dial("udp4", "8.8.8.8:443")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 9)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a datagram from the container: %v", err)
		}
	})
}

// container makes a network namespace behind a veth pair with the address
// 172.17.0.2; ours is 172.17.0.1.
func container() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, r.err
	}
	steps := func(h *netlink.Handle, name, cidr string) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		return errors.Join(h.AddrAdd(l, a), h.LinkSetUp(l))
	}
	here, err := netlink.NewHandle()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(r.f.Fd())}
	if err := here.LinkAdd(veth); err != nil {
		return nil, err
	}
	there, err := netlink.NewHandleAt(netns.NsHandle(r.f.Fd()))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := errors.Join(steps(here, "veth0", "172.17.0.1/16"), steps(there, "eth0", "172.17.0.2/16")); err != nil {
		return nil, err
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	return r.f, there.RouteAdd(&netlink.Route{Dst: all, Gw: net.IPv4(172, 17, 0, 1)})
}
