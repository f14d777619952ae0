package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) portCommand() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:   "port [flags] NAME [[ADDRESS:]HOSTPORT:GUESTPORT]",
		Short: "Open a port of this machine into a guest, or list what is open",
		Long: `Open a port of this machine's loopback into a guest, and print its address. Host
port 0 lets the system choose. It is closed with the guest. Without a port, list
those that are open.`,
		Example:           "  carrel port dev 8080:80\n  carrel port dev 0:80\n  carrel port --rm dev 8080\n  carrel port dev",
		Args:              needs(arguments(1, 2)),
		ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := client.CheckName("guest", args[0]); err != nil {
				return usageError{err}
			}
			return a.doPort(cmd.Context(), remove, args)
		},
	}
	cmd.Flags().BoolVar(&remove, "rm", false, "close a port: NAME HOSTPORT")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

func (a *app) doPort(ctx context.Context, remove bool, args []string) error {
	var p *api.Port
	var host uint32
	var err error
	switch {
	case remove && len(args) == 2:
		host, err = parsePort(args[1])
	case remove:
		err = errors.New("--rm needs the host's port: carrel port --rm NAME HOSTPORT")
	case len(args) == 2:
		p, err = parsePublish(args[1])
	}
	if err != nil {
		return usageError{err}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	switch {
	case remove:
		return c.Unpublish(ctx, args[0], host)
	case p == nil:
		return a.listPorts(ctx, c, args[0])
	}
	if p, err = c.Publish(ctx, args[0], p); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(p)
	}
	_, err = fmt.Fprintln(a.out, hostAddress(p))
	return err
}

func (a *app) listPorts(ctx context.Context, c *client.Client, name string) error {
	g, err := c.Guest(ctx, name)
	if err != nil {
		return err
	}
	if a.json {
		return printArray(a, g.Ports)
	}
	for _, p := range g.Ports {
		if _, err := fmt.Fprintf(a.out, "%s -> %d\n", hostAddress(p), p.GuestPort); err != nil {
			return err
		}
	}
	return nil
}

// hostAddress is where a published port is found.
func hostAddress(p *api.Port) string {
	host := p.GetHostAddress()
	if host == "" {
		host = "127.0.0.1"
	}
	return safe(net.JoinHostPort(host, fmt.Sprint(p.GetHostPort())))
}

// parsePublish reads [ADDRESS:]HOSTPORT:GUESTPORT.
func parsePublish(s string) (*api.Port, error) {
	bad := fmt.Errorf("%.100q is not HOSTPORT:GUESTPORT, such as 8080:80", s)
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return nil, bad
	}
	guest, err := parsePort(s[i+1:])
	if err != nil {
		return nil, err
	}
	p := &api.Port{GuestPort: guest}
	rest := s[:i]
	if j := strings.LastIndexByte(rest, ':'); j >= 0 {
		addr, err := netip.ParseAddr(strings.Trim(rest[:j], "[]"))
		if err != nil {
			return nil, bad
		}
		p.HostAddress, rest = addr.String(), rest[j+1:]
	}
	if rest == "0" {
		return p, nil
	}
	p.HostPort, err = parsePort(rest)
	return p, err
}

func parsePort(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%.40q is not a port from 1 to 65535", s)
	}
	return uint32(n), nil
}
