package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// reachFlags are the flags that say what a guest may reach.
type reachFlags struct{ allow, preset, secret []string }

func (f *reachFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.allow, "allow", nil, "a host that the guest may reach: `HOST[:PORT]`, on port 443 without PORT; nothing else is reachable")
	fs.StringSliceVar(&f.preset, "preset", nil, "hosts that belong together: `NAME`, such as packages or github")
	fs.StringSliceVar(&f.secret, "secret", nil, "a credential that is added outside the guest: `NAME` (carrel secret ls)")
}

// reachNames are the flags' names.
var reachNames = []string{"allow", "preset", "secret"}

// spec returns nil if nothing was asked for.
func (f *reachFlags) spec() (*api.EgressSpec, error) {
	if len(f.allow)+len(f.preset)+len(f.secret) == 0 {
		return nil, nil
	}
	out := &api.EgressSpec{Presets: f.preset, Secrets: f.secret}
	for _, list := range f.allow {
		for s := range strings.SplitSeq(list, ",") {
			r, err := hostRule(api.EgressAction_EGRESS_ACTION_ALLOW, s)
			if err != nil {
				return nil, usageError{fmt.Errorf("--allow: %w", err)}
			}
			out.Rules = append(out.Rules, r)
		}
	}
	return out, nil
}

// hostRule makes a rule of HOST[:PORT].
func hostRule(action api.EgressAction, s string) (*api.EgressRule, error) {
	host, port, err := client.ParseHostPort(s)
	if err != nil {
		return nil, err
	}
	r := &api.EgressRule{Action: action, Host: host}
	if port != 0 {
		r.Ports = []uint32{port}
	}
	return r, nil
}

func actionWord(a api.EgressAction) string {
	switch a {
	case api.EgressAction_EGRESS_ACTION_ALLOW:
		return "allow"
	case api.EgressAction_EGRESS_ACTION_ASK:
		return "ask"
	}
	return "deny"
}

// ruleWord describes a rule in a few words, without what it does and where it
// comes from.
func ruleWord(r *api.EgressRule) string {
	w := r.GetHost()
	switch {
	case len(r.GetPorts()) > 0 && !slices.Equal(r.Ports, []uint32{443}):
		if strings.Contains(w, ":") {
			w = "[" + w + "]"
		}
		w += ":" + joinNumbers(r.Ports)
	case len(r.GetPorts()) == 0 && r.GetAction() == api.EgressAction_EGRESS_ACTION_DENY:
		w += " (every port)"
	}
	if len(r.GetMethods()) > 0 {
		w += " " + strings.Join(r.Methods, ",")
	}
	if len(r.GetPaths()) > 0 {
		w += " " + strings.Join(r.Paths, " ")
	}
	if r.GetSecret() != "" {
		w += " with secret " + r.Secret
	}
	return w
}

func joinNumbers(ns []uint32) string {
	var s []string
	for _, n := range ns {
		s = append(s, fmt.Sprint(n))
	}
	return strings.Join(s, ",")
}

// reachWord describes what a guest was made to reach, or "".
func reachWord(s *api.EgressSpec) string {
	var parts []string
	for _, p := range s.GetPresets() {
		parts = append(parts, "preset "+p)
	}
	for _, r := range s.GetRules() {
		w := ruleWord(r)
		if r.GetAction() != api.EgressAction_EGRESS_ACTION_ALLOW {
			w = actionWord(r.GetAction()) + " " + w
		}
		parts = append(parts, w)
	}
	for _, n := range s.GetSecrets() {
		parts = append(parts, "secret "+n)
	}
	return strings.Join(parts, "; ")
}
