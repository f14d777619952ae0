package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const device = "lo"

// loopback is the device lo, whose number is 1 in every namespace
// (LOOPBACK_IFINDEX, net/core/dev.c). To ask for it by name would take longer
// than all else that is done with it.
var loopback = &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: device, Index: 1}}

// ownAddress brings loopback up and gives it the namespace's own address, of
// global scope: getaddrinfo's AI_ADDRCONFIG counts no other.
func ownAddress(own netip.Addr) error {
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	err := netlink.AddrAdd(loopback, &netlink.Addr{
		IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(32, 32)},
		Scope: unix.RT_SCOPE_UNIVERSE,
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give the guest the address %s: %w", own, err)
	}
	return nil
}

// everything is the route that makes every IPv4 address local, as
// "ip route add local default dev lo src OWN". It is in the table main: in the
// table local it would come before the routes of bridges.
func everything(own netip.Addr) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: loopback.Index,
		Dst:       &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Type:      unix.RTN_LOCAL,
		Scope:     unix.RT_SCOPE_HOST,
		Table:     unix.RT_TABLE_MAIN,
		Protocol:  unix.RTPROT_BOOT,
	}
	if own.IsValid() {
		r.Src = own.AsSlice()
	}
	return r
}

func routeAll(own netip.Addr) error {
	if err := netlink.RouteReplace(everything(own)); err != nil {
		return fmt.Errorf("route all addresses to loopback: %w", err)
	}
	return nil
}

func unrouteAll() { _ = netlink.RouteDel(everything(netip.Addr{})) }
