package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

// secretTime bounds how long the store of secrets may take: a locked keychain
// asks a person for a password.
const secretTime = 60 * time.Second

// decision is what a guest may do, by everything that has a say in it now.
type decision struct {
	grant *policy.Grant
	// spec is what was decided on: the guest's own, with what the repositories
	// that it sees ask for; rules are by what.
	spec  *api.GuestSpec
	rules policy.Rules
	// requests says of each repository that asks for something what became of it.
	requests []string
	upstream *api.EdgeUpstream
}

// decide asks policy about a guest. The policy file, the secrets and the
// repositories' requests are read each time: what they say now is what counts.
func (d *Daemon) decide(spec *api.GuestSpec) (*decision, error) {
	return d.decideWith(spec, func(*decision) {})
}

// decideAgain is decide for a guest that was granted before. A secret that was
// removed since takes its rules with it, and nothing else.
func (d *Daemon) decideAgain(spec *api.GuestSpec) (*decision, error) {
	return d.decideWith(spec, func(x *decision) {
		gone := func(name string) bool { _, known := x.rules.SecretRules[name]; return name != "" && !known }
		usesGone := func(r *api.EgressRule) bool { return gone(r.GetSecret()) }
		for _, name := range x.spec.GetEgress().GetSecrets() {
			if gone(name) {
				x.requests = append(x.requests, "secret "+name+" was removed: its rules do not hold any more")
			}
		}
		if x.spec.Egress != nil {
			x.spec.Egress.Secrets = slices.DeleteFunc(x.spec.Egress.Secrets, gone)
			x.spec.Egress.Rules = slices.DeleteFunc(x.spec.Egress.Rules, usesGone)
		}
		x.rules.Egress = slices.DeleteFunc(x.rules.Egress, usesGone)
	})
}

func (d *Daemon) decideWith(spec *api.GuestSpec, adapt func(*decision)) (*decision, error) {
	file, err := policy.Load(filepath.Join(d.opts.Place.Config, policyFile))
	if err != nil {
		return nil, err
	}
	d.telemetry.use(file)
	out := &decision{rules: file.Apply(d.opts.Rules), upstream: upstream(file.Upstream)}
	if out.rules.SecretRules, err = d.secretRules(); err != nil {
		return nil, err
	}
	if out.spec, out.rules.Asked, out.requests, err = d.withRequests(spec); err != nil {
		return nil, err
	}
	adapt(out)
	out.grant, err = policy.Decide(out.spec, out.rules)
	return out, err
}

// secretRules are the rules that each secret brings.
func (d *Daemon) secretRules() (map[string]policy.RuleList, error) {
	known, err := d.secrets.List()
	if err != nil {
		return nil, &policy.Refusal{Code: "secrets_unreadable", Reason: err.Error()}
	}
	out := map[string]policy.RuleList{}
	for _, s := range known {
		out[s.Name] = secret.Rules(s.Name, s.Definition)
	}
	return out, nil
}

// withRequests adds what the repositories among the shared folders ask for, as
// far as the user has agreed to exactly that; what they deny themselves, hide
// and protect holds in any case.
func (d *Daemon) withRequests(spec *api.GuestSpec) (out *api.GuestSpec, names map[string]policy.Lists, said []string, err error) {
	out = proto.Clone(spec).(*api.GuestSpec)
	for _, sh := range spec.GetShares() {
		if !filepath.IsAbs(sh.GetPath()) {
			continue // policy has the words for it
		}
		f, content, problems, err := policy.LoadRequest(sh.Path)
		name := filepath.Join(sh.Path, policy.RequestName)
		switch {
		case err != nil:
			said = append(said, "what "+name+" asks for is ignored: "+err.Error())
			continue
		case len(problems) > 0:
			said = append(said, "what "+name+" asks for is ignored: it has mistakes (carrel policy check "+name+")")
			continue
		case f == nil:
			continue
		}
		agreed, err := d.agreed(sh.Path, content)
		if err != nil {
			return nil, nil, nil, err
		}
		if !f.Shares.Empty() {
			if names == nil {
				names = map[string]policy.Lists{}
			}
			names[sh.Path] = f.Shares
		}
		more, all := f.Spec(agreed), f.Spec(true)
		if !agreed && !proto.Equal(more, all) {
			said = append(said, "what "+name+" asks for is not granted: nobody has agreed to it (carrel policy agree "+sh.Path+")")
		}
		if out.Egress == nil {
			out.Egress = &api.EgressSpec{}
		}
		out.Egress.Rules = append(out.Egress.Rules, more.Rules...)
		out.Egress.Presets = merge(out.Egress.Presets, more.Presets)
		out.Egress.Secrets = merge(out.Egress.Secrets, more.Secrets)
	}
	return out, names, said, nil
}

func merge(a, b []string) []string {
	for _, x := range b {
		if !slices.Contains(a, x) {
			a = append(a, x)
		}
	}
	return a
}

// upstream is the host's own way out: what the policy file says, else what the
// daemon's environment does.
func upstream(file *api.EdgeUpstream) *api.EdgeUpstream {
	if file != nil {
		return file
	}
	env := func(names ...string) string {
		for _, n := range names {
			if v := os.Getenv(n); v != "" {
				return v
			}
		}
		return ""
	}
	return &api.EdgeUpstream{
		HttpsProxy: env("HTTPS_PROXY", "https_proxy"), HttpProxy: env("HTTP_PROXY", "http_proxy"), NoProxy: env("NO_PROXY", "no_proxy"),
	}
}

// configuration is what a guest's egress process is told: the rules in effect,
// the secrets that they name, the host's own way out. A value that cannot be had
// is an error before a guest starts; one that runs goes on without it, and its
// requests that need it are refused.
func (d *Daemon) configuration(ctx context.Context, x *decision, dir string, running bool) (*api.ConfigureEdgeRequest, error) {
	l, err := loadLive(dir)
	if err != nil {
		return nil, err
	}
	out := &api.ConfigureEdgeRequest{Rules: l.apply(x.grant.EgressRules()), Upstream: x.upstream}
	sctx, cancel := context.WithTimeout(ctx, secretTime)
	defer cancel()
	for _, name := range x.grant.Secrets() {
		s, err := d.secrets.Get(sctx, name)
		if err != nil && !running {
			return nil, err
		}
		if err != nil {
			d.log.Error("a guest goes on without a secret", "guest", filepath.Base(dir), "secret", name, "error", err)
		}
		out.Secrets = append(out.Secrets, s...)
	}
	return out, nil
}

// placeholders are the variables in which tasks see that there are secrets.
func placeholders(secrets []*api.EdgeSecret) (env []string) {
	for _, s := range secrets {
		if d := s.Definition; d.GetEnv() != "" {
			env = append(env, d.Env+"="+d.Placeholder)
		}
	}
	return env
}

// notes says what is not as the rules alone would have it.
func (x *decision) notes(secrets []*api.Secret) (notes []string) {
	for _, p := range []string{x.upstream.GetHttpsProxy(), x.upstream.GetHttpProxy()} {
		if p != "" {
			n := "names are resolved by the proxy " + withoutPassword(p) + ": the addresses behind them are not checked here, and address literals are refused"
			if !slices.Contains(notes, n) {
				notes = append(notes, n)
			}
		}
	}
	notes = append(notes, x.requests...)
	for _, s := range secrets {
		if slices.Contains(x.grant.Secrets(), s.Name) {
			for _, r := range s.GetDefinition().GetResiduals() {
				notes = append(notes, "secret "+s.Name+": "+r)
			}
		}
	}
	return notes
}

// withoutPassword is a proxy's URL as it may be shown.
func withoutPassword(p string) string {
	scheme, rest, is := strings.Cut(p, "://")
	if !is {
		scheme, rest = "http", p
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return fmt.Sprintf("%s://%.128s", scheme, rest)
}

// policyBroken says whether an error is about the policy file or the secrets
// themselves, rather than about what a guest asks for.
func policyBroken(err error) bool {
	var r *policy.Refusal
	return errors.As(err, &r) && (r.Code == "policy_unreadable" || r.Code == "policy_invalid" || r.Code == "secrets_unreadable")
}
