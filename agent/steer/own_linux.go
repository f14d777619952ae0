package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxOwn bounds the addresses of the namespace that are left alone. Only the
// guest's root can add any, and containers take a handful.
const maxOwn = 1024

// ownSet is where the addresses that are really local are written down. 127/8
// is in it from the start.
type ownSet interface {
	add(netip.Addr) error
	remove(netip.Addr) error
}

// both writes down in two places.
type both struct{ a, b ownSet }

func (o both) add(a netip.Addr) error    { return errors.Join(o.a.add(a), o.b.add(a)) }
func (o both) remove(a netip.Addr) error { return errors.Join(o.a.remove(a), o.b.remove(a)) }

// ownWatch follows the IPv4 addresses of all devices.
type ownWatch struct {
	*nl.Conn
	have map[netip.Addr]struct{}
}

// watchOwn subscribes before anything is listed, so that no change is missed.
func watchOwn() (*ownWatch, error) {
	c, err := nl.Dial(unix.NETLINK_ROUTE, &nl.Config{Groups: unix.RTMGRP_IPV4_IFADDR})
	if err != nil {
		return nil, fmt.Errorf("watch the guest's addresses: %w", err)
	}
	return &ownWatch{Conn: c, have: make(map[netip.Addr]struct{})}, nil
}

// run keeps set true until the watch is closed. A message is only a reason to
// look again, so that one that was lost does no harm.
func (w *ownWatch) run(set ownSet) error {
	for {
		if err := w.sync(set); err != nil {
			return err
		}
		// ENOBUFS: more has changed than the kernel could tell.
		if _, err := w.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}

// leave adds an address.
func (w *ownWatch) leave(set ownSet, a netip.Addr) error {
	if err := set.add(a); err != nil {
		return fmt.Errorf("leave %s alone: %w", a, err)
	}
	w.have[a] = struct{}{}
	return nil
}

// sync makes set what the devices' addresses are now.
func (w *ownWatch) sync(set ownSet) error {
	list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil // it changes right now, and that will be told
		}
		return fmt.Errorf("list the guest's addresses: %w", err)
	}
	now := make(map[netip.Addr]struct{}, len(list))
	for _, l := range list {
		// A point-to-point device's peer is not ours; IP is the local end.
		if a, ok := addr(l.IP); ok && !a.IsLoopback() && len(now) < maxOwn {
			now[a] = struct{}{}
		}
	}
	for a := range now {
		if _, ok := w.have[a]; ok {
			continue
		}
		if err := w.leave(set, a); err != nil {
			return err
		}
	}
	for a := range w.have {
		if _, ok := now[a]; ok {
			continue
		}
		if err := set.remove(a); err != nil {
			return fmt.Errorf("steer %s again: %w", a, err)
		}
		delete(w.have, a)
	}
	return nil
}

func addr(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip.To4())
	return a, ok
}
