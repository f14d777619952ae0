package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

type allowFlags struct {
	paths, methods     []string
	ask, private, wide bool
}

func (a *app) allowCommand() *cobra.Command {
	var f allowFlags
	cmd := &cobra.Command{
		Use:   "allow [flags] NAME HOST[:PORT]...",
		Short: "Let a guest reach a host",
		Long: `Let a guest reach a host, on port 443 without PORT. It holds at once, and for
as long as the guest exists. "*.example.org" is every host below example.org,
and not example.org itself.

With --path or --method the guest's requests are looked at, one by one: TLS then
ends on this machine, and is made again to the host.`,
		Example: `  carrel allow dev example.org
  carrel allow dev '*.example.org' git.example.org:8443
  carrel allow dev --method GET --path '/v1/**' api.example.org
  carrel allow dev --ask example.org`,
		Args:              guestAndHosts,
		ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			action := api.EgressAction_EGRESS_ACTION_ALLOW
			if f.ask {
				action = api.EgressAction_EGRESS_ACTION_ASK
			}
			return a.doAllow(cmd.Context(), action, &f, args[0], args[1:])
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&f.paths, "path", nil, "only requests for this `PATH`; * is any run of characters but /, ** any run")
	fs.StringSliceVar(&f.methods, "method", nil, "only requests with this `METHOD`, such as GET")
	fs.BoolVar(&f.ask, "ask", false, "ask each time: carrel egress NAME -f shows the questions")
	fs.BoolVar(&f.private, "private", false, "the name may lead to private addresses, such as 10.0.0.1")
	fs.BoolVar(&f.wide, "wide", false, "needed for * and for suffixes that many share, such as *.github.io")
	fs.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func (a *app) denyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deny [flags] NAME HOST[:PORT]...",
		Short: "Stop a guest from reaching a host",
		Long: `Stop a guest from reaching a host: on every port without PORT. It holds at once,
whatever else allows the host, and connections to it are closed.`,
		Example:           "  carrel deny dev example.org\n  carrel deny dev '*.example.org'",
		Args:              guestAndHosts,
		ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.doAllow(cmd.Context(), api.EgressAction_EGRESS_ACTION_DENY, &allowFlags{}, args[0], args[1:])
		},
	}
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

// guestAndHosts checks NAME HOST[:PORT]... before anything runs.
var guestAndHosts = needs(func(cmd *cobra.Command, args []string) error {
	if err := arguments(2, many)(cmd, args); err != nil {
		return err
	}
	if err := client.CheckName("guest", args[0]); err != nil {
		return err
	}
	for _, h := range args[1:] {
		if _, _, err := client.ParseHostPort(h); err != nil {
			return err
		}
	}
	return nil
})

func (a *app) doAllow(ctx context.Context, action api.EgressAction, f *allowFlags, name string, hosts []string) error {
	var add, remove []*api.EgressRule
	for _, h := range hosts {
		r, err := hostRule(action, h)
		if err != nil {
			return usageError{err}
		}
		r.Paths, r.Private, r.Wide = f.paths, f.private, f.wide
		for _, m := range f.methods {
			r.Methods = append(r.Methods, strings.ToUpper(m))
		}
		add = append(add, r)
		remove = append(remove, opposites(r)...)
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	out, err := c.ChangeEgress(ctx, name, add, remove)
	if err != nil {
		var own *client.Error
		if errors.As(err, &own) && own.Code == "bad_rule" && !f.wide && strings.Contains(strings.Join(hosts, " "), "*") {
			own.Cure = "--wide, if that is meant"
		}
		return err
	}
	if out.Closed > 0 {
		a.note(fmt.Sprintf("%d connections that no rule covers any more were closed", out.Closed))
	}
	if action == api.EgressAction_EGRESS_ACTION_DENY {
		return nil
	}
	// Another rule may be stronger, and then this one is of no use.
	for i, h := range hosts {
		if strings.Contains(h, "*") {
			continue
		}
		v, err := c.TestEgress(ctx, name, "", hostPort(add[i]))
		if err == nil && v.GetAction() == api.EgressAction_EGRESS_ACTION_UNSPECIFIED || v.GetAction() == api.EgressAction_EGRESS_ACTION_DENY {
			a.warn(fmt.Sprintf("%s is still denied by %s: %s", h, v.GetRule().GetOrigin(), v.GetReason()))
		}
	}
	return nil
}

// hostPort is where a rule with an exact host leads.
func hostPort(r *api.EgressRule) string {
	port := uint32(443)
	if len(r.Ports) > 0 {
		port = r.Ports[0]
	}
	if strings.Contains(r.Host, ":") {
		return fmt.Sprintf("[%s]:%d", r.Host, port)
	}
	return fmt.Sprintf("%s:%d", r.Host, port)
}

// opposites are the rules of this guest that a command takes back: those that
// say the contrary about exactly the same.
func opposites(r *api.EgressRule) (out []*api.EgressRule) {
	is := func(action api.EgressAction, ports []uint32) {
		out = append(out, &api.EgressRule{Action: action, Host: r.Host, Ports: ports})
	}
	if r.Action == api.EgressAction_EGRESS_ACTION_DENY {
		is(api.EgressAction_EGRESS_ACTION_ALLOW, r.Ports)
		is(api.EgressAction_EGRESS_ACTION_ASK, r.Ports)
		return out
	}
	is(api.EgressAction_EGRESS_ACTION_DENY, r.Ports)
	if len(r.Ports) == 0 {
		is(api.EgressAction_EGRESS_ACTION_DENY, []uint32{443})
	}
	if r.Action == api.EgressAction_EGRESS_ACTION_ALLOW {
		is(api.EgressAction_EGRESS_ACTION_ASK, r.Ports)
	} else {
		is(api.EgressAction_EGRESS_ACTION_ALLOW, r.Ports)
	}
	return out
}
