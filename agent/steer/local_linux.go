package steer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// LocalPorts are where connections are taken by StartLocal: https, http, ssh,
// git. Few, because a task cannot listen on them any more; all but the last are
// root's anyway.
var LocalPorts = []uint16{443, 80, 22, 9418}

// Local is how StartLocal steers.
const Local = "loopback"

// StartLocal steers where there is neither sk_lookup nor nftables, as in gVisor:
// loopback gets an address whose whole network is then local, and on a few ports
// a listener takes what is connected to any address of it. What is sent by UDP
// there is lost, other ports refuse, and other addresses have no route.
func StartLocal(own netip.Prefix) (_ *Steering, err error) {
	s := &Steering{How: Local, local: own}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if err := addLocal(own); err != nil {
		return nil, fmt.Errorf("give the guest the address %s: %w", own, err)
	}
	var lc net.ListenConfig
	ctx := context.Background()
	var ports []string
	for _, p := range LocalPorts {
		l, err := lc.Listen(ctx, "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), p).String())
		if err != nil {
			return nil, fmt.Errorf("take connections: %w", err)
		}
		s.undo = append(s.undo, func() { _ = l.Close() })
		s.More = append(s.More, l.(*net.TCPListener))
		ports = append(ports, fmt.Sprint(p))
	}
	s.TCP, s.More = s.More[0], s.More[1:]
	s.How += ": ports " + strings.Join(ports, ", ") + ", for names only"
	if err := s.listenDNS(lc); err != nil {
		return nil, err
	}
	// There is nothing to follow: Wait returns at Close.
	closed := make(chan struct{})
	s.undo = append(s.undo, func() { close(closed) })
	s.watch.Go(func() { <-closed })
	return s, nil
}

// addLocal gives loopback, which is up in gVisor, an address and its network.
// gVisor takes a message with these two attributes and no others.
func addLocal(own netip.Prefix) error {
	c, err := nl.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	a := own.Addr().AsSlice()
	ae := nl.NewAttributeEncoder()
	ae.Bytes(unix.IFA_LOCAL, a)
	ae.Bytes(unix.IFA_ADDRESS, a)
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	// struct ifaddrmsg (linux/if_addr.h): family, bits, flags, scope, device.
	m := []byte{unix.AF_INET, byte(own.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	m = binary.NativeEndian.AppendUint32(m, uint32(loopback.Index))
	_, err = c.Execute(nl.Message{
		Header: nl.Header{Type: unix.RTM_NEWADDR, Flags: nl.Request | nl.Acknowledge | nl.Create | nl.Excl},
		Data:   append(m, attrs...),
	})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
