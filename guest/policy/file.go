package policy

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

// RequestName is the file in which a repository says what it would like.
const RequestName = ".carrel.yaml"

// File is what a policy file says: the user's policy.yaml, or a repository's
// request. The zero value is what an empty or missing file says: nothing may be
// reached.
type File struct {
	// Rules hold for every guest; their origins name the file and the line.
	Rules []*api.EgressRule
	// Presets are the names of those that are used.
	Presets []string
	// Secrets are the names of those that a repository would like to use.
	Secrets []string
	// Defined are the file's own presets.
	Defined map[string][]*api.EgressRule
	// Shares are names to hide and to protect in shares; a repository's are of
	// its own folder.
	Shares Lists
	// Upstream is the host's own way out, or nil. It may hold a password.
	Upstream *api.EdgeUpstream
	// MaxCPUs and so on are the limits that the file sets; 0: none.
	MaxCPUs, MaxMemoryMiB, MaxDiskMiB uint32
	// MaxShares is nil if the file does not say.
	MaxShares *int
	// MinBoundary is the weakest wall that is good enough, or empty.
	MinBoundary string
	// VolumeNames are the volumes that may be, nil if the file does not say;
	// MaxVolumeMiB is the most that one may hold, 0: no limit of the file's.
	VolumeNames  []string
	MaxVolumeMiB uint32
	// MaxVolumes and MinFreeMiB are nil if the file does not say.
	MaxVolumes *int
	MinFreeMiB *uint32
	// Host are the limits of all guests together.
	Host HostLimits
	// Telemetry is where events, audit records and figures go; nil: nowhere.
	Telemetry *Telemetry
	// Pool says which guests are kept warm; the zero value: none.
	Pool Pool
	// Idle says what becomes of idle guests.
	Idle Idle
}

// ParseFile reads a user's policy file. If there is a problem, the file is not
// to be used at all: File is then nil. The name is for origins and errors.
func ParseFile(content []byte, name string) (*File, []*api.PolicyProblem) {
	return parseFile(content, name, theUsers)
}

// ParseRequest reads a repository's request. It has no wide or private rules,
// limits, boundary or upstream: it can narrow what the user allows, or ask.
func ParseRequest(content []byte, name string) (*File, []*api.PolicyProblem) {
	return parseFile(content, name, aRequest)
}

// Load reads the user's policy file. A file that is not there is an empty one;
// one that cannot be read or has a problem is an error, and then no guest may
// start: an empty policy might allow more than the one that is meant, as it has
// no deny rules.
func Load(path string) (*File, error) {
	content, err := readPlain(path, true)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &File{}, nil
	case err != nil:
		return nil, refuse("policy_unreadable", "mend it, or remove it: then nothing can be reached", "the policy file cannot be read: %v", err)
	}
	f, problems := ParseFile(content, filepath.Base(path))
	if len(problems) > 0 {
		return nil, refuse("policy_invalid", "carrel policy check "+path+" shows all of it", "%s", Problems(path, problems[:1]))
	}
	return f, nil
}

// LoadRequest reads the request in a folder, following no link, and returns its
// content with it. If there is none, all is nil.
func LoadRequest(folder string) (f *File, content []byte, problems []*api.PolicyProblem, err error) {
	content, err = readPlain(filepath.Join(folder, RequestName), false)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil, nil, nil
	case err != nil:
		return nil, nil, nil, refuse("request_unreadable", "", "the repository's %s cannot be read: %v", RequestName, err)
	}
	f, problems = ParseRequest(content, RequestName)
	return f, content, problems, nil
}

// readPlain reads a regular file, bounded, and never waits. follow says whether
// the path's end may be a link: a user's own file may.
func readPlain(path string, follow bool) ([]byte, error) {
	f, err := openPlain(path, follow)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	// One byte more than is possible, so that a file that grows is seen.
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return content, err
}

// Problems writes problems as compilers do: "policy.yaml:3:5: unknown key ...".
func Problems(name string, problems []*api.PolicyProblem) string {
	var s []string
	for _, p := range problems {
		at := plain(name, maxOrigin)
		if p.Line > 0 {
			at += fmt.Sprintf(":%d:%d", p.Line, p.Column)
		}
		s = append(s, at+": "+p.Text)
	}
	return strings.Join(s, "\n")
}

// Spec is what a repository's request adds to what the user asks for. Without
// the user's agreement to exactly this content these are only its deny rules.
func (f *File) Spec(agreed bool) *api.EgressSpec {
	s := &api.EgressSpec{}
	if f == nil {
		return s
	}
	for _, r := range clone(f.Rules) {
		if agreed || r.Action == deny {
			s.Rules = append(s.Rules, r)
		}
	}
	if agreed {
		s.Presets, s.Secrets = slices.Clone(f.Presets), slices.Clone(f.Secrets)
	}
	return s
}

// Apply returns rules with what the user's file says: limits only get tighter.
func (f *File) Apply(rules Rules) Rules {
	if f == nil {
		return rules
	}
	tighter := func(is *uint32, to uint32) {
		if to > 0 {
			*is = min(*is, to)
		}
	}
	tighter(&rules.MaxCPUs, f.MaxCPUs)
	tighter(&rules.MaxMemoryMiB, f.MaxMemoryMiB)
	tighter(&rules.MaxDiskMiB, f.MaxDiskMiB)
	if f.MaxShares != nil {
		rules.MaxShares = min(rules.MaxShares, *f.MaxShares)
	}
	tighter(&rules.Volumes.MaxMiB, f.MaxVolumeMiB)
	if f.MaxVolumes != nil {
		rules.Volumes.Count = min(rules.Volumes.Count, *f.MaxVolumes)
	}
	if f.VolumeNames != nil {
		rules.Volumes.Names = slices.Clone(f.VolumeNames)
	}
	if f.MinFreeMiB != nil {
		rules.MinFreeMiB = f.MinFreeMiB
	}
	rules.Idle = f.Idle
	rules.Host = f.Host
	rules.Egress, rules.Presets, rules.MinBoundary = clone(f.Rules), slices.Clone(f.Presets), f.MinBoundary
	rules.Shares = f.Shares.clone()
	rules.Defined = map[string]RuleList{}
	for name, list := range f.Defined {
		rules.Defined[name] = clone(list)
	}
	return rules
}

// kind says whose word a file is.
type kind int

const (
	theUsers kind = iota
	aRequest
	builtIn
)

func parseFile(content []byte, name string, k kind) (*File, []*api.PolicyProblem) {
	return (&reader{name: filepath.Base(name)}).file(content, k)
}

func (r *reader) file(content []byte, k kind) (*File, []*api.PolicyProblem) {
	f := &File{}
	if root := r.document(content); root != nil {
		version := false
		fields := []field{
			{"version", func(v *yaml.Node) { version = true; r.number(v, "version", 1, 1) }},
			{"egress", func(v *yaml.Node) { r.egress(v, f, k) }},
			{"shares", func(v *yaml.Node) { r.shareLists(v, f, k) }},
		}
		if k != aRequest {
			fields = append(fields,
				field{"presets", func(v *yaml.Node) { r.presets(v, f, k) }},
				field{"boundary", func(v *yaml.Node) { r.boundary(v, f) }},
				field{"limits", func(v *yaml.Node) { r.limits(v, f) }},
				field{"volumes", func(v *yaml.Node) { r.volumes(v, f) }},
				field{"host", func(v *yaml.Node) { r.host(v, f) }},
				field{"telemetry", func(v *yaml.Node) { r.telemetry(v, f) }},
				field{"pool", func(v *yaml.Node) { r.pool(v, f) }},
				field{"idle", func(v *yaml.Node) { r.idle(v, f) }})
		}
		what := "a policy file"
		if k == aRequest {
			what = "a repository's request"
		}
		r.mapping(root, what, fields...)
		if !version && root.Kind == yaml.MappingNode {
			r.problem(root, "the version is missing (version: 1)")
		}
		for i, p := range f.Presets {
			if _, known := f.Defined[p]; k == theUsers && !known && builtins()[p] == nil {
				r.problem(root, "there is no preset %q in egress.presets (number %d; there are %s)", p, i+1, strings.Join(presetNames(f.Defined), ", "))
			}
		}
	}
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	return f, nil
}

func (r *reader) egress(n *yaml.Node, f *File, k kind) {
	names := func(what string, into *[]string) func(*yaml.Node) {
		return func(v *yaml.Node) {
			r.list(v, what, false, func(e *yaml.Node) {
				name := r.text(e, "the name of one of "+what)
				if name == "" {
					return
				}
				if !hypervisor.ValidName(name) {
					r.problem(e, "%q cannot be one of %s", clip(name), what)
				} else if !slices.Contains(*into, name) {
					*into = append(*into, name)
				}
			})
		}
	}
	fields := []field{
		{"presets", names("egress.presets", &f.Presets)},
		{"rules", func(v *yaml.Node) { f.Rules = r.rules(v, "egress.rules", k) }},
	}
	if k == aRequest {
		fields = append(fields, field{"secrets", names("egress.secrets", &f.Secrets)})
	} else {
		fields = append(fields, field{"upstream", func(v *yaml.Node) { r.upstream(v, f) }})
	}
	r.mapping(n, "egress", fields...)
}

func (r *reader) presets(n *yaml.Node, f *File, k kind) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.problem(n, "presets is a mapping from names to lists of rules, not %s", kindOf(n))
		return
	}
	f.Defined = map[string][]*api.EgressRule{}
	r.pairs(n, func(key, v *yaml.Node) {
		switch {
		case !hypervisor.ValidName(key.Value):
			r.problem(key, "preset name %q is not possible (lower-case letters, digits and dashes, at most 31)", clip(key.Value))
		case k != builtIn && (key.Value == "none" || builtins()[key.Value] != nil):
			r.problem(key, "the preset %q is built in (choose another name)", key.Value)
		default:
			f.Defined[key.Value] = r.rules(v, "presets."+key.Value, k)
		}
	})
}

func (r *reader) boundary(n *yaml.Node, f *File) {
	r.mapping(n, "boundary", field{"minimum", func(v *yaml.Node) {
		s := r.text(v, "boundary.minimum")
		if s != "" && !slices.Contains(boundaries, s) {
			r.problem(v, "boundary.minimum is one of %s, not %q", strings.Join(boundaries, ", "), clip(s))
		}
		f.MinBoundary = s
	}})
}

func (r *reader) limits(n *yaml.Node, f *File) {
	mib := func(what string, low, high int64, into *uint32) field {
		return field{what, func(v *yaml.Node) { *into = uint32(r.bytes(v, "limits."+what, low<<20, high<<20) >> 20) }}
	}
	r.mapping(n, "limits", append(r.hostLimits(f),
		field{"cpus", func(v *yaml.Node) { f.MaxCPUs = uint32(r.number(v, "limits.cpus", 1, hypervisor.MaxCPUs)) }},
		mib("memory", hypervisor.MinMemoryMiB, hypervisor.MaxMemoryMiB, &f.MaxMemoryMiB),
		mib("disk", minDiskMiB, maxDiskMiB, &f.MaxDiskMiB),
		field{"shares", func(v *yaml.Node) {
			shares := int(r.number(v, "limits.shares", 0, maxShares))
			f.MaxShares = &shares
		}})...)
}

func (r *reader) volumes(n *yaml.Node, f *File) {
	r.mapping(n, "volumes",
		field{"names", func(v *yaml.Node) {
			f.VolumeNames = []string{}
			r.list(v, "volumes.names", false, func(e *yaml.Node) {
				p := r.text(e, "a pattern of volumes.names")
				if p == "" {
					return
				}
				if !hypervisor.ValidName(strings.ReplaceAll(p, "*", "x")) {
					r.problem(e, "%q is no pattern of volumes' names (lower-case letters, digits, dashes and \"*\", at most 31)", clip(p))
					return
				}
				f.VolumeNames = append(f.VolumeNames, p)
			})
		}},
		field{"size", func(v *yaml.Node) {
			f.MaxVolumeMiB = uint32(r.bytes(v, "volumes.size", minDiskMiB<<20, maxDiskMiB<<20) >> 20)
		}},
		field{"count", func(v *yaml.Node) {
			n := int(r.number(v, "volumes.count", 0, hypervisor.MaxVolumes))
			f.MaxVolumes = &n
		}})
}

// host is about the machine that guests run on.
func (r *reader) host(n *yaml.Node, f *File) {
	r.mapping(n, "host", field{"free", func(v *yaml.Node) {
		mib := uint32(r.bytes(v, "host.free", 0, maxDiskMiB<<20) >> 20)
		f.MinFreeMiB = &mib
	}})
}

func (r *reader) upstream(n *yaml.Node, f *File) {
	f.Upstream = &api.EdgeUpstream{}
	proxy := func(what string, into *string) field {
		return field{what, func(v *yaml.Node) {
			// The value may hold a password: it is not repeated.
			u, err := url.Parse(r.text(v, "egress.upstream."+what))
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
				r.problem(v, "egress.upstream.%s is not the URL of a proxy (http://proxy.example:3128)", what)
				return
			}
			*into = v.Value
		}}
	}
	r.mapping(n, "egress.upstream", proxy("https_proxy", &f.Upstream.HttpsProxy), proxy("http_proxy", &f.Upstream.HttpProxy),
		field{"no_proxy", func(v *yaml.Node) { f.Upstream.NoProxy = r.text(v, "egress.upstream.no_proxy") }})
}
