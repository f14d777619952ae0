package policy

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/guest/api"
	sharerules "github.com/carrel-vm/carrel/guest/share/rules"
)

// Lists are patterns of names below shared folders, each with where it stands.
type Lists struct {
	// Hide are names that a guest never sees, Protect those that it never
	// changes on the host.
	Hide, Protect []sharerules.List `json:",omitempty"`
}

// Empty says that there are none.
func (l Lists) Empty() bool { return len(l.Hide) == 0 && len(l.Protect) == 0 }

// clone returns a copy that can be changed.
func (l Lists) clone() Lists { return Lists{slices.Clone(l.Hide), slices.Clone(l.Protect)} }

// maxFileNames bounds the patterns of one list of a policy file.
const maxFileNames = 1024

// shareLists reads the names of a file. What a repository asks for can hide and
// protect more than the user does, and take back nothing.
func (r *reader) shareLists(n *yaml.Node, f *File, k kind) {
	list := func(what string, into *[]sharerules.List) field {
		return field{what, func(v *yaml.Node) {
			r.list(v, "shares."+what, false, func(e *yaml.Node) {
				p := r.text(e, "a name in shares."+what)
				if p == "" {
					if e.Kind == yaml.ScalarNode && e.Tag == "!!str" {
						r.problem(e, "a name in shares.%s is empty", what)
					}
					return
				}
				switch err := sharerules.Check(p); {
				case err != nil:
					r.problem(e, "shares.%s: %v", what, err)
				case k == aRequest && strings.HasPrefix(p, "!"):
					r.problem(e, "shares.%s: %q takes something back, which a repository cannot (policy.yaml and --%s can)", what, clip(p), what)
				case len(*into) >= maxFileNames:
					r.problem(e, "shares.%s has more than %d names", what, maxFileNames)
				default:
					*into = append(*into, sharerules.List{Pattern: p, Origin: fmt.Sprintf("%s:%d", r.name, e.Line)})
				}
			})
		}}
	}
	r.mapping(n, "shares", list("hide", &f.Shares.Hide), list("protect", &f.Shares.Protect))
}

// ShareRules returns the rules of names that hold for the share with number i:
// the built-in lists, then the policy file's, then the share's own, then what
// the repository in it adds.
func (g *Grant) ShareRules(i int) sharerules.Options { return g.names[i] }

// Layer names what is kept of a share, beside the share: the guest's layer over
// it, and its folder in the review store. It is the same at every start.
func (g *Grant) Layer(i int) string { return layer(g.spec.Shares[i]) }

// shareRules joins the lists that hold for a share, and refuses what cannot be
// understood: nothing is shared under rules that are not known.
func shareRules(s *api.Share, rules Rules) (sharerules.Options, error) {
	o := sharerules.Options{Mode: shareMode(s.Mode), Plain: s.Plain}
	if s.Plain && len(s.Hide)+len(s.Protect) > 0 {
		return o, refuse("bad_request", "leave out \"plain\", or --hide and --protect", "share %q is plain, so that no name in it is hidden or protected, and has names to hide or protect", clip(s.Path))
	}
	asked := rules.Asked[s.Path]
	for _, part := range []struct {
		what             string
		own              []string
		file, repository []sharerules.List
		into             *[]sharerules.List
	}{
		{what: "hide", own: s.Hide, file: rules.Shares.Hide, repository: asked.Hide, into: &o.Hide},
		{what: "protect", own: s.Protect, file: rules.Shares.Protect, repository: asked.Protect, into: &o.Protect},
	} {
		if len(part.own) > maxFileNames {
			return o, refuse("too_large", "name a folder that holds them", "share %q has %d names to %s; %d are possible", clip(s.Path), len(part.own), part.what, maxFileNames)
		}
		*part.into = append(*part.into, part.file...)
		for _, p := range part.own {
			if err := sharerules.Check(p); err != nil {
				return o, refuse("bad_pattern", "write it as in .gitignore: *.pem, secrets/, /only/at/the/root", "share %q cannot %s %q: %v", clip(s.Path), part.what, clip(p), err)
			}
			*part.into = append(*part.into, sharerules.List{Pattern: p, Origin: "--" + part.what})
		}
		for _, l := range part.repository {
			if strings.HasPrefix(l.Pattern, "!") {
				return o, refuse("bad_pattern", "", "what the repository in %q adds takes something back: %q", clip(s.Path), clip(l.Pattern))
			}
			*part.into = append(*part.into, l)
		}
	}
	if _, err := sharerules.Compile(o); err != nil {
		return o, refuse("bad_pattern", "", "the names to hide or protect in share %q: %v", clip(s.Path), err)
	}
	return o, nil
}

func shareMode(m api.ShareMode) sharerules.Mode {
	switch m {
	case api.ShareMode_SHARE_MODE_RO:
		return sharerules.ReadOnly
	case api.ShareMode_SHARE_MODE_RW:
		return sharerules.ReadWrite
	case api.ShareMode_SHARE_MODE_RW_NODELETE:
		return sharerules.NoDelete
	}
	return sharerules.Review
}

// insideRules refuses a root whose own name is hidden, or, where the guest's
// changes come to the host, protected or the beginning of names that are:
// patterns are about names below a root, so that "hooks" in a share of a ".git"
// would be a name like any other.
func insideRules(s *api.Share) error {
	if s.Plain {
		return nil
	}
	lists, err := sharerules.Compile(sharerules.Options{})
	if err != nil {
		return err
	}
	slash := filepath.ToSlash(s.Path)
	v, whole := lists.Judge(path.Base(slash)), lists.Judge(strings.TrimLeft(slash, "/"))
	if whole.Hidden {
		v = whole
	}
	changes := s.Mode != api.ShareMode_SHARE_MODE_RO && (v.Protected || whole.Ancestor || whole.Within)
	if !v.Hidden && !changes {
		return nil
	}
	why := v.Reason
	if why == "" {
		why = "names in it are protected by where they lie, which cannot be told from inside"
	}
	return refuse("share_refused", "share the folder that holds it; :ro,plain shares just this", "share %q is refused: %s", clip(s.Path), why)
}
