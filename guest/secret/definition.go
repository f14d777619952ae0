package secret

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// Complete fills a definition from its preset, checks every field of it, and
// returns what is stored. Of what a credential may be used for, nothing is
// assumed: hosts, methods and paths are named by the preset or by the user.
func Complete(name string, d *api.SecretDefinition) (*api.SecretDefinition, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	c := new(api.SecretDefinition)
	if d != nil {
		c = proto.Clone(d).(*api.SecretDefinition)
	}
	if c.Preset != "" {
		if err := fill(c); err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
	}
	if len(c.Ports) == 0 {
		c.Ports = []uint32{443}
	}
	if c.Placeholder == "" {
		c.Placeholder = prefixes[c.Preset] + "carrel-placeholder-" + name
	}
	c.Header = strings.ToLower(c.Header)
	for i, m := range c.Methods {
		c.Methods[i] = strings.ToUpper(m)
	}
	if err := check(c); err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	return c, nil
}

var (
	hostLabel   = late(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	methodWord  = late(`^[A-Z]{1,16}$`)
	pathPattern = late(`^/[!-~]{0,511}$`)
	envName     = late(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	// A placeholder is written alike in URLs, JSON and shells, so that it is
	// recognised wherever it turns up.
	placeholderText = late(`^[A-Za-z0-9._-]{16,128}$`)
	headerName      = late(`^[a-z0-9!#$%&'*+.^_|~-]{1,64}$`)
	repository      = late(`^[A-Za-z0-9](-?[A-Za-z0-9]){0,38}/[A-Za-z0-9._-]{1,100}$`)
)

// lateRegexp is a regular expression that is compiled when it is first used: each
// of a guest's processes has this package in it, and few of them need it.
type lateRegexp func() *regexp.Regexp

func late(expr string) lateRegexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// MatchString is regexp.Regexp's.
func (p lateRegexp) MatchString(s string) bool { return p().MatchString(s) }

// takenEnv are variables that a placeholder would break a guest with.
var takenEnv = []string{"PATH", "HOME", "USER", "SHELL", "PWD", "IFS", "ENV", "BASH_ENV", "TMPDIR", "TERM"}

// check holds a complete definition to its form. NewEdge asks it again, because
// the definition has been on a disk meanwhile.
func check(d *api.SecretDefinition) error {
	for what, n := range map[string]int{
		"hosts": len(d.Hosts), "ports": len(d.Ports), "methods": len(d.Methods), "paths": len(d.Paths), "pass_headers": len(d.PassHeaders),
		"refuse_fields": len(d.RefuseFields), "residuals": len(d.Residuals), "repositories": len(d.Repositories),
	} {
		if n > maxList {
			return fmt.Errorf("%d %s are too many (at most %d)", n, what, maxList)
		}
	}
	if d.Preset != "" && presets[d.Preset] == nil {
		return unknownPreset(d.Preset)
	}
	if len(d.Hosts) == 0 {
		return errors.New("it names no host (--host api.example.org, or a ready-made definition: --for " + strings.Join(Presets(), "|") + ")")
	}
	for _, h := range d.Hosts {
		if err := checkHost(h); err != nil {
			return err
		}
	}
	for _, p := range d.Ports {
		if p == 0 || p > 65535 {
			return fmt.Errorf("%d is not a port", p)
		}
		if p == 80 {
			return errors.New("port 80 is clear text, where no secret is ever sent (leave the port out: it is 443)")
		}
	}
	if err := checkKind(d); err != nil {
		return err
	}
	if d.Preset == "github" {
		if len(d.Repositories) == 0 {
			return errors.New("it names no repository (--repository OWNER/NAME, for each that the guest may touch)")
		}
	} else {
		if len(d.Repositories) > 0 {
			return errors.New("repositories belong to --for github (use --path)")
		}
		if len(d.Methods) == 0 {
			return errors.New("it names no method (--method GET, for each that may be used)")
		}
		if len(d.Paths) == 0 {
			return errors.New("it names no path (--path /v1/things, or --path '/**' for every path of the host)")
		}
	}
	for _, m := range d.Methods {
		if !methodWord.MatchString(m) || m == "CONNECT" || m == "TRACE" || m == "TRACK" {
			return fmt.Errorf("%.40q is not a method that can carry a secret", m)
		}
	}
	for _, p := range d.Paths {
		if !pathPattern.MatchString(p) {
			return fmt.Errorf("%.60q is not a pattern of a path (begin with /; * is any run but /, ** any run; no spaces)", p)
		}
	}
	for _, r := range d.Repositories {
		if _, n, _ := strings.Cut(r, "/"); !repository.MatchString(r) || n == "." || n == ".." || strings.HasSuffix(strings.ToLower(n), ".git") {
			return fmt.Errorf("%.80q is not a repository (OWNER/NAME, without .git)", r)
		}
	}
	if d.Env != "" && (!envName.MatchString(d.Env) || slices.Contains(takenEnv, d.Env) || strings.HasPrefix(d.Env, "LD_")) {
		return fmt.Errorf("%.40q cannot be the variable of a placeholder", d.Env)
	}
	if !placeholderText.MatchString(d.Placeholder) {
		return fmt.Errorf("%.40q cannot be a placeholder (16 to 128 letters, digits, dots, dashes and underscores)", d.Placeholder)
	}
	if _, err := compilePass(d.PassHeaders); err != nil {
		return err
	}
	if _, err := compileFields(d.RefuseFields); err != nil {
		return err
	}
	for _, r := range d.Residuals {
		if len(r) > maxText {
			return errors.New("a residual's text is too long")
		}
	}
	return nil
}

func checkHost(h string) error {
	bad := func(why string) error {
		return fmt.Errorf("%.60q is not a host for a secret: %s (give one DNS name, such as api.example.org)", h, why)
	}
	switch {
	case len(h) > 253 || h == "":
		return bad("its length")
	case strings.Contains(h, "*"):
		return bad("a secret goes to named hosts, never to a pattern")
	case strings.ToLower(h) != h:
		return bad("upper-case letters")
	}
	labels := strings.Split(h, ".")
	for _, l := range labels {
		if !hostLabel.MatchString(l) {
			return bad("a label that no name has")
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return bad("an address: a server proves a name")
	}
	return nil
}

func checkKind(d *api.SecretDefinition) error {
	switch d.Kind {
	case api.SecretKind_SECRET_KIND_BEARER:
	case api.SecretKind_SECRET_KIND_BASIC:
		if d.User == "" || len(d.User) > maxText || strings.ContainsFunc(d.User, func(r rune) bool { return r < 0x20 || r == 0x7f || r == ':' }) {
			return fmt.Errorf("%.40q cannot be the user of basic authentication (RFC 7617: no colon, no control characters)", d.User)
		}
		if d.Header != "" {
			return errors.New("basic authentication has its own header (leave --header out)")
		}
		return nil
	case api.SecretKind_SECRET_KIND_HEADER:
		if !headerName.MatchString(d.Header) || framing[d.Header] {
			return fmt.Errorf("%.40q cannot be the header of a secret", d.Header)
		}
		if d.User != "" {
			return errors.New("a user belongs to basic authentication (leave it out)")
		}
		return nil
	default:
		return errors.New("it does not say how the credential is sent (--bearer, --header NAME or --basic USER)")
	}
	if d.Header != "" || d.User != "" {
		return errors.New("a bearer token has neither a header's name nor a user (leave them out)")
	}
	return nil
}
