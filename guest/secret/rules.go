package secret

import (
	"slices"

	"github.com/carrel-vm/carrel/guest/api"
)

// grant is one use of a credential: where it may go, and in which form.
type grant struct {
	host           string
	kind           api.SecretKind
	methods, paths []string
}

// grants are all uses of a credential.
func grants(d *api.SecretDefinition) []grant {
	if d.Preset == "github" {
		return githubGrants(d)
	}
	var out []grant
	for _, h := range d.Hosts {
		if d.Preset == "anthropic" || d.Preset == "openai" {
			// Models are read, everything else is asked.
			var read, ask []string
			for _, p := range d.Paths {
				if slices.Contains([]string{"/v1/models", "/v1/models/*"}, p) {
					read = append(read, p)
				} else {
					ask = append(ask, p)
				}
			}
			for _, g := range []grant{{h, d.Kind, keep(d.Methods, "GET", "HEAD"), read}, {h, d.Kind, keep(d.Methods, "POST"), ask}} {
				if len(g.paths) > 0 && len(g.methods) > 0 {
					out = append(out, g)
				}
			}
			continue
		}
		out = append(out, grant{h, d.Kind, d.Methods, d.Paths})
	}
	return out
}

func keep(list []string, which ...string) (out []string) {
	for _, s := range list {
		if slices.Contains(which, s) {
			out = append(out, s)
		}
	}
	return out
}

// githubWritable are the parts of a repository that the REST API may change.
// Left out are those that send things elsewhere or give others a right: hooks,
// keys, collaborators, secrets, forks, transfers, environments, dispatches. Pulls
// stand below, because POST pulls/N/codespaces starts a machine at GitHub.
var githubWritable = []string{"issues", "comments", "contents", "git", "labels", "milestones", "statuses", "check-runs", "check-suites", "merges", "releases"}

// githubPulls are the parts of pull requests that may be written.
var githubPulls = []string{"pulls", "pulls/*", "pulls/*/merge", "pulls/*/update-branch", "pulls/*/requested_reviewers", "pulls/*/reviews", "pulls/*/reviews/**", "pulls/*/comments", "pulls/*/comments/**", "pulls/comments/**"}

// githubGrants bind a token to the named repositories: git over https with
// basic authentication, and the REST API with a bearer token.
func githubGrants(d *api.SecretDefinition) (out []grant) {
	for _, r := range d.Repositories {
		var fetch, packs, write []string
		for _, base := range []string{"/" + r, "/" + r + ".git"} {
			fetch = append(fetch, base+"/info/refs")
			packs = append(packs, base+"/git-upload-pack", base+"/git-receive-pack")
		}
		for _, part := range githubWritable {
			write = append(write, "/repos/"+r+"/"+part, "/repos/"+r+"/"+part+"/**")
		}
		for _, part := range githubPulls {
			write = append(write, "/repos/"+r+"/"+part)
		}
		out = append(out,
			grant{"github.com", api.SecretKind_SECRET_KIND_BASIC, []string{"GET"}, fetch},
			grant{"github.com", api.SecretKind_SECRET_KIND_BASIC, []string{"POST"}, packs},
			grant{"api.github.com", api.SecretKind_SECRET_KIND_BEARER, []string{"GET", "HEAD"}, []string{"/repos/" + r, "/repos/" + r + "/**"}},
			grant{"api.github.com", api.SecretKind_SECRET_KIND_BEARER, []string{"POST", "PATCH", "PUT", "DELETE"}, write},
		)
	}
	return out
}

// Rules returns what a secret brings to a guest's rules. d must be complete.
func Rules(name string, d *api.SecretDefinition) (out []*api.EgressRule) {
	for _, g := range grants(d) {
		out = append(out, &api.EgressRule{
			Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: g.host, Ports: slices.Clone(d.Ports),
			Methods: slices.Clone(g.methods), Paths: slices.Clone(g.paths), Secret: name, Origin: "secret " + name,
		})
	}
	return out
}
