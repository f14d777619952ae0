package guest

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// maxGitHosts bounds what the guest's git is told.
const maxGitHosts = 64

// forges are hosts whose remotes are so often written as git@HOST: that they
// are rewritten also where no rule names them: a refusal is then explained.
var forges = []string{"bitbucket.org", "codeberg.org", "github.com", "gitlab.com"}

// gitHosts are the hosts for which git's ssh remotes are rewritten to https, so
// that rules and secrets apply to them: the forges, and what a rule names. One
// whose port 22 may be reached is left alone: somebody wants ssh.
func gitHosts(rules []*api.EgressRule) []string {
	const ssh, https = 22, 443
	var hosts, left []string
	for _, r := range rules {
		if r.Action != api.EgressAction_EGRESS_ACTION_ALLOW && r.Action != api.EgressAction_EGRESS_ACTION_ASK {
			continue
		}
		if slices.Contains(r.Ports, ssh) {
			left = append(left, strings.ToLower(r.Host))
		}
		if len(r.Ports) == 0 || slices.Contains(r.Ports, https) {
			hosts = append(hosts, strings.ToLower(r.Host))
		}
	}
	out := slices.Clone(forges)
	for _, h := range hosts {
		if _, err := netip.ParseAddr(h); err == nil || strings.ContainsAny(h, "*:/ \"\n") || h == "" || len(out) >= maxGitHosts {
			continue
		}
		out = append(out, h)
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(h string) bool { return slices.Contains(left, h) })
}
