// Package policy is the only place that says yes: it turns what a user asks
// for into a Grant, or into a refusal with its reason. A guest is built from
// nothing but a Grant.
package policy

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	sharerules "github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/hypervisor"
)

// Rules are what the user of this machine allows. The zero value allows
// nothing; Default is what holds without a policy file.
type Rules struct {
	// MaxCPUs, MaxMemoryMiB and MaxDiskMiB bound one guest.
	MaxCPUs, MaxMemoryMiB, MaxDiskMiB uint32
	// MaxShares bounds the shares of one guest.
	MaxShares int
	// Home is the user's home folder. It and what lies above it are never
	// shared, nor are the folders in it that hold credentials.
	Home string
	// Own are Carrel's own folders (state, config, cache, run). Nothing in
	// them, and nothing that contains one, is ever shared.
	Own []string
	// Egress are the rules of the user's policy file; they hold for every guest.
	Egress RuleList
	// Presets are the names of those that the policy file uses for every guest.
	Presets []string
	// Defined are the policy file's own presets.
	Defined map[string]RuleList
	// SecretRules are the rules that each known secret brings, by its name.
	SecretRules map[string]RuleList
	// Shares are the policy file's names to hide and to protect in every share.
	Shares Lists
	// Asked are those that repositories ask for, by their folders. They add to
	// the others, whoever agrees to them or not, and take nothing back.
	Asked map[string]Lists
	// MinBoundary is the weakest wall that is good enough: "vm", "gvisor" or
	// "process"; empty: any.
	MinBoundary string
	// Volumes say which volumes a guest may have.
	Volumes VolumeRules
	// MinFreeMiB is how much of the host's disk must be free for a start; nil:
	// the default, see place.Floor.
	MinFreeMiB *uint32
	// Idle says what becomes of a guest from which nobody wants anything.
	Idle Idle
	// Host are the limits of all guests together.
	Host HostLimits
}

// Default returns the rules without a policy file, for a user's home folder
// and Carrel's own folders.
func Default(home string, own ...string) Rules {
	return Rules{
		MaxCPUs: hypervisor.MaxCPUs, MaxMemoryMiB: hypervisor.MaxMemoryMiB, MaxDiskMiB: maxDiskMiB,
		MaxShares: maxShares, Home: home, Own: own,
		Volumes: VolumeRules{MaxMiB: maxDiskMiB, Count: hypervisor.MaxVolumes},
	}
}

// Defaults of a request.
const (
	DefaultImage     = "default"
	DefaultCPUs      = 2
	DefaultMemoryMiB = 2048
	DefaultDiskMiB   = 8192
	minDiskMiB       = 64
	maxDiskMiB       = 1 << 20
	maxShares        = 64
)

// Refusal says why a request is not granted.
type Refusal struct {
	// Code is a stable word: "bad_name", "share_refused", ...
	Code string
	// Reason says what was refused, and why.
	Reason string
	// Cure is what the user can do, or empty.
	Cure string
}

func (r *Refusal) Error() string {
	if r.Cure == "" {
		return r.Reason
	}
	return r.Reason + " (" + r.Cure + ")"
}

func refuse(code, cure, format string, args ...any) error {
	return &Refusal{Code: code, Reason: fmt.Sprintf(format, args...), Cure: cure}
}

// Grant is a checked and resolved request. Only Decide makes one.
type Grant struct {
	spec *api.GuestSpec
	pins []Pin
	// names are the rules of names of each share.
	names []sharerules.Options
	// egress are the rules in effect, with their origins.
	egress  []*api.EgressRule
	secrets []string
	// walls are the boundaries that are good enough, the strongest first.
	walls []string
}

// Pin identifies a share's folder as it was when it was granted. What is
// opened later must be the same one.
type Pin struct {
	Path     string
	Dev, Ino uint64
}

// Parts are what a Config needs beside the grant: the guest's own folder, the
// verified parts of its image, and its disk.
type Parts struct {
	Dir, Kernel, Initrd, Root, Scratch string
	// Volumes is the folder of all volumes; empty: there are none.
	Volumes string
	// Foreign says that the root's files come from a registry or an archive.
	Foreign bool `json:",omitempty"`
	// Hold is a file that the guest's keeper locks, shared, as long as the guest
	// runs from its image, or empty.
	Hold string `json:",omitempty"`
	// Image is what the image says of tasks; nil: nothing.
	Image *ImageConfig `json:",omitempty"`
}

// ImageConfig is what an image says of the tasks that run in it, as the OCI image
// specification has it (config.md, "config").
type ImageConfig struct {
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
}

// Spec returns a copy of the request as it was granted, its defaults filled in.
func (g *Grant) Spec() *api.GuestSpec { return proto.Clone(g.spec).(*api.GuestSpec) }

// Pins returns the identity of each share's folder, in the order of the shares.
func (g *Grant) Pins() []Pin { return append([]Pin(nil), g.pins...) }

// Config returns what a driver builds the guest from.
func (g *Grant) Config(p Parts) hypervisor.Config {
	c := hypervisor.Config{
		Name: g.spec.Name, Dir: p.Dir, Kernel: p.Kernel, Initrd: p.Initrd, Root: p.Root, Foreign: p.Foreign, Scratch: p.Scratch,
		CPUs: int(g.spec.Cpus), MemoryMiB: int(g.spec.MemoryMib),
	}
	for i, s := range g.spec.Shares {
		sh := hypervisor.Share{
			Tag: fmt.Sprintf("share%d", i), Path: s.Path, GuestPath: s.GuestPath,
			ReadOnly: readOnly(s.Mode), Overlay: s.Mode == api.ShareMode_SHARE_MODE_REVIEW, Plain: s.Plain,
		}
		if sh.Overlay {
			sh.Layer = layer(s)
		}
		c.Shares = append(c.Shares, sh)
	}
	for i, v := range g.spec.Volumes {
		c.Volumes = append(c.Volumes, hypervisor.Volume{Serial: fmt.Sprintf("volume%d", i), Path: VolumeDisk(p.Volumes, v.Name), GuestPath: v.GuestPath})
	}
	return c
}

// Decide grants a request or refuses it; the error is then a *Refusal. It looks
// at the host's folders, and changes nothing. The name must be set.
func Decide(req *api.GuestSpec, rules Rules) (*Grant, error) {
	if req == nil {
		return nil, refuse("bad_request", "", "there is no request")
	}
	s := proto.Clone(req).(*api.GuestSpec)
	if s.Image == "" {
		s.Image = DefaultImage
	}
	if s.Cpus == 0 {
		s.Cpus = min(DefaultCPUs, rules.MaxCPUs)
	}
	if s.MemoryMib == 0 {
		s.MemoryMib = min(DefaultMemoryMiB, rules.MaxMemoryMiB)
	}
	// A guest that stays, and what is in review, are to outlive the guest's
	// memory. Behind gVisor there is no disk.
	keeps := s.Boundary != "gvisor" && (!s.Ephemeral || slices.ContainsFunc(s.Shares, func(sh *api.Share) bool { return inReview(sh) }))
	if s.DiskMib == 0 && keeps {
		s.DiskMib = min(DefaultDiskMiB, rules.MaxDiskMiB)
	}
	const names = "lower-case letters, digits and dashes, at most 31, not beginning with a dash"
	switch {
	case !hypervisor.ValidName(s.Name):
		return nil, refuse("bad_name", "use "+names, "guest name %q is not possible", clip(s.Name))
	case !hypervisor.ValidName(s.Image) && !ValidReference(s.Image):
		return nil, refuse("bad_name", "use "+names+", or a reference such as python:3.13", "image name %q is not possible", clip(s.Image))
	case s.Cpus < 1 || s.Cpus > rules.MaxCPUs:
		return nil, refuse("too_large", "", "%d CPUs asked for; between 1 and %d are allowed", s.Cpus, rules.MaxCPUs)
	case s.MemoryMib < hypervisor.MinMemoryMiB || s.MemoryMib > rules.MaxMemoryMiB:
		return nil, refuse("too_large", "", "%d MiB of memory asked for; between %d and %d are allowed", s.MemoryMib, hypervisor.MinMemoryMiB, rules.MaxMemoryMiB)
	case s.DiskMib != 0 && (s.DiskMib < minDiskMiB || s.DiskMib > rules.MaxDiskMiB):
		return nil, refuse("too_large", "", "a disk of %d MiB asked for; between %d and %d are allowed", s.DiskMib, minDiskMiB, rules.MaxDiskMiB)
	case len(s.Shares) > rules.MaxShares:
		return nil, refuse("too_large", "share fewer folders, or one that holds them", "%d shares asked for; %d are allowed", len(s.Shares), rules.MaxShares)
	}
	g := &Grant{spec: s}
	for i, sh := range s.Shares {
		pin, err := decideShare(sh, rules)
		if err != nil {
			return nil, err
		}
		for _, other := range s.Shares[:i] {
			if other.GuestPath == sh.GuestPath {
				return nil, refuse("share_refused", "give one of them another path: -v PATH:GUESTPATH", "two shares want to be at %s in the guest", sh.GuestPath)
			}
		}
		names, err := shareRules(sh, rules)
		if err != nil {
			return nil, err
		}
		g.pins, g.names = append(g.pins, pin), append(g.names, names)
	}
	if err := decideVolumes(s, rules.Volumes); err != nil {
		return nil, err
	}
	var err error
	if g.walls, err = decideBoundary(s.Boundary, rules.MinBoundary); err != nil {
		return nil, err
	}
	if len(s.Volumes) > 0 { // and nothing weaker stands in for it
		g.walls = boundaries[:1:1]
	}
	if g.egress, g.secrets, err = decideEgress(s.Egress, rules); err != nil {
		return nil, err
	}
	return g, nil
}

// FilledShare returns a share with what a request may leave open: as a guest has
// it. It checks nothing.
func FilledShare(s *api.Share) *api.Share {
	filled := proto.Clone(s).(*api.Share)
	fillShare(filled)
	return filled
}

func fillShare(s *api.Share) {
	if s.Mode == api.ShareMode_SHARE_MODE_UNSPECIFIED {
		s.Mode = api.ShareMode_SHARE_MODE_REVIEW
	}
	if s.GuestPath == "" {
		s.GuestPath = guestPath(s.Path)
	}
}

// decideShare fills in a share's defaults, checks it and pins its folder.
func decideShare(s *api.Share, rules Rules) (Pin, error) {
	if s == nil {
		return Pin{}, refuse("bad_request", "", "a share is missing")
	}
	fillShare(s)
	if _, known := api.ShareMode_name[int32(s.Mode)]; !known {
		return Pin{}, refuse("bad_request", "use review, ro, rw or rw-nodelete", "share %q has an unknown mode %d", clip(s.Path), s.Mode)
	}
	if why := badText(s.Path); why != "" {
		return Pin{}, refuse("bad_path", "rename the folder", "share %q is refused: %s", clip(s.Path), why)
	}
	if err := dangerous(s.Path, rules); err != nil {
		return Pin{}, err
	}
	if err := insideRules(s); err != nil {
		return Pin{}, err
	}
	pin, err := pinFolder(s.Path)
	if err != nil {
		return Pin{}, err
	}
	if err := checkGuestPath(s.GuestPath); err != nil {
		return Pin{}, err
	}
	return pin, nil
}

// ofGuest are folders of the guest that a share may not lie on, above or in.
var ofGuest = []string{"/proc", "/sys", "/dev", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/boot", "/run", "/init"}

func checkGuestPath(p string) error {
	const cure = "choose another place: -v PATH:GUESTPATH"
	if why := badText(p); why != "" {
		return refuse("bad_path", cure, "guest path %q is refused: %s", clip(p), why)
	}
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || len(p) > 1024 || strings.Contains(p, `\`) {
		return refuse("bad_path", cure, "guest path %q is not an absolute, clean path below /", clip(p))
	}
	for _, o := range ofGuest {
		if p == o || strings.HasPrefix(p, o+"/") {
			return refuse("bad_path", cure, "guest path %q would cover the guest's own %s", clip(p), o)
		}
	}
	return nil
}

// badText says what is wrong with a path's characters, or "".
func badText(p string) string {
	switch {
	case p == "":
		return "it is empty"
	case len(p) > 4096:
		return "it is longer than 4096 bytes"
	case !utf8.ValidString(p):
		return "it is not UTF-8"
	}
	for _, r := range p {
		if r < 0x20 || r == 0x7f {
			return "it has a control character"
		}
	}
	for _, c := range strings.Split(strings.ReplaceAll(p, `\`, "/"), "/") {
		if c == ".." {
			return `it has ".." in it`
		}
	}
	return ""
}

// clip bounds what a message repeats of a request.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
