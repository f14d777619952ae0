package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// specFlags are the flags that say what a guest is made of.
type specFlags struct {
	shares       []string
	noShare      bool
	names        nameFlags
	name, image  string
	cpus         uint32
	memory, disk string
	boundary     string
	volumes      []string
	reachFlags
	given func(flag string) bool // set by add
}

// maxCPUs is the daemon's own bound; policy.yaml may have a lower one.
const maxCPUs = 64

func (f *specFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.shares, "share", "v", nil, "`share` a folder, PATH[:GUESTPATH][:MODE]; MODE is review (the default: what the guest changes waits for your yes), ro, rw-nodelete or rw; \",plain\" after it drops the lists of hidden and protected names")
	fs.BoolVar(&f.noShare, "no-share", false, "share no folder, not even the current one")
	f.names.add(fs)
	fs.StringVar(&f.image, "image", "", "the guest's `image`: one that was built here (default \"default\"), or a registry's such as python:3.13, which is pulled if it is not here; with --boundary process also \"host\": this machine's own system, read only")
	fs.Uint32Var(&f.cpus, "cpus", 0, "processors: `N` (default 2)")
	fs.StringVar(&f.memory, "memory", "", "memory: a `size` such as 512M or 4G (default 2G)")
	fs.StringVar(&f.disk, "disk", "", "the guest's own disk: a `size` such as 8G")
	fs.StringVar(&f.boundary, "boundary", "", "the `wall` around the guest: vm, gvisor or process (default vm); a weaker one is never taken unasked")
	fs.StringArrayVar(&f.volumes, "volume", nil, "a `volume` that outlives the guest, NAME:PATH; it is made when there is none of that name")
	f.reachFlags.add(fs)
	f.given = fs.Changed
}

// changed says whether any of them was given.
func (f *specFlags) changed(cmd *cobra.Command) bool {
	for _, n := range append([]string{"share", "no-share", "hide", "protect", "image", "cpus", "memory", "disk", "boundary", "volume"}, reachNames...) {
		if cmd.Flags().Changed(n) {
			return true
		}
	}
	return false
}

// nameFlags are the flags that name what is hidden and protected in shares.
type nameFlags struct{ hide, protect []string }

func (f *nameFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.hide, "hide", nil, "a `name` that the guest does not see in its shares, as in .gitignore; \"!name\" shows it what is hidden otherwise")
	fs.StringArrayVar(&f.protect, "protect", nil, "a `name` that the guest cannot change on this machine; \"!name\" takes that back")
}

// put adds the names to a share. A plain one has none.
func (f *nameFlags) put(shares ...*api.Share) error {
	some := len(f.hide)+len(f.protect) == 0
	for _, s := range shares {
		if !s.Plain {
			s.Hide, s.Protect, some = f.hide, f.protect, true
		}
	}
	if !some {
		return usageError{errors.New("--hide and --protect have no share: what is plain has no such names, and nothing else is shared")}
	}
	return nil
}

// spec checks the flags and turns them into a request. The current folder is
// shared for review if nothing else is said; usual says so.
func (f *specFlags) spec() (spec *api.GuestSpec, usual bool, err error) {
	spec = &api.GuestSpec{Name: f.name, Image: f.image, Cpus: f.cpus, Boundary: f.boundary}
	if f.name != "" {
		if err := client.CheckName("guest", f.name); err != nil {
			return nil, false, usageError{err}
		}
	}
	if f.image != "" && client.CheckName("image", f.image) != nil {
		if err := client.CheckImage(f.image); err != nil {
			return nil, false, usageError{err}
		}
	}
	if !slices.Contains([]string{"", "vm", "gvisor", "process"}, f.boundary) {
		return nil, false, usageError{fmt.Errorf("--boundary %q: use vm, gvisor or process", f.boundary)}
	}
	if f.cpus == 0 && f.given("cpus") { // which in a request means the default
		return nil, false, usageError{fmt.Errorf("--cpus 0: between 1 and %d are possible", maxCPUs)}
	}
	if spec.MemoryMib, err = parseMiB("--memory", f.memory); err != nil {
		return nil, false, usageError{err}
	}
	if spec.DiskMib, err = parseMiB("--disk", f.disk); err != nil {
		return nil, false, usageError{err}
	}
	for _, v := range f.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return nil, false, usageError{err}
		}
		spec.Volumes = append(spec.Volumes, m)
	}
	if spec.Egress, err = f.reachFlags.spec(); err != nil {
		return nil, false, err
	}
	if f.noShare {
		if len(f.shares) > 0 {
			return nil, false, usageError{errors.New("--no-share and --share exclude each other")}
		}
		return spec, false, f.names.put()
	}
	cwd, err := currentFolder()
	if err != nil {
		return nil, false, err
	}
	if len(f.shares) == 0 {
		if err := nameable(cwd); err != nil {
			return nil, false, usageError{fmt.Errorf("the current folder: %w, or use --no-share", err)}
		}
		spec.Shares = []*api.Share{{Path: cwd, Mode: api.ShareMode_SHARE_MODE_REVIEW}}
		return spec, true, f.names.put(spec.Shares...)
	}
	for _, s := range f.shares {
		sh, err := parseShare(s, cwd)
		if err != nil {
			return nil, false, usageError{err}
		}
		spec.Shares = append(spec.Shares, sh)
	}
	return spec, false, f.names.put(spec.Shares...)
}

// nameable refuses a path that is not UTF-8: no request can hold it.
func nameable(path string) error {
	if utf8.ValidString(path) {
		return nil
	}
	return fmt.Errorf("%q is not UTF-8, and such a path can be neither shared nor named: rename it, or choose another one", path)
}

// currentFolder is the folder itself, without the links that led to it.
func currentFolder() (string, error) {
	d, err := os.Getwd()
	if err == nil {
		d, err = filepath.EvalSymlinks(d)
	}
	if err != nil {
		return "", fmt.Errorf("the current folder cannot be found: %w (cd into another one, or use --no-share)", err)
	}
	return d, nil
}

// modes are what a share may be, by its name.
var modes = map[string]api.ShareMode{
	"review": api.ShareMode_SHARE_MODE_REVIEW, "ro": api.ShareMode_SHARE_MODE_RO,
	"rw": api.ShareMode_SHARE_MODE_RW, "rw-nodelete": api.ShareMode_SHARE_MODE_RW_NODELETE,
}

// hasDrive says whether a path of this host begins with a drive's letter, whose
// colon separates nothing.
func hasDrive(arg string) bool {
	return runtime.GOOS == "windows" && len(arg) >= 2 && arg[1] == ':' && ('a' <= arg[0]|0x20 && arg[0]|0x20 <= 'z')
}

// parseShare reads PATH[:GUESTPATH][:MODE[,plain]]. A relative PATH is taken from cwd.
func parseShare(arg, cwd string) (*api.Share, error) {
	bad := func(format string, v ...any) (*api.Share, error) {
		return nil, fmt.Errorf("share %q: %s", arg, fmt.Sprintf(format, v...))
	}
	if len(arg) > 3*4096 {
		arg = arg[:64]
		return bad("it is too long")
	}
	rest, drive := arg, ""
	if hasDrive(arg) {
		drive, rest = arg[:2], arg[2:]
	}
	parts := strings.Split(rest, ":")
	host, parts := drive+parts[0], parts[1:]
	if host == "" {
		return bad("the folder is missing")
	}
	s := &api.Share{Mode: api.ShareMode_SHARE_MODE_REVIEW}
	if n := len(parts); n > 0 {
		word, plain := strings.CutSuffix(parts[n-1], ",plain")
		mode, is := modes[word]
		switch {
		case is:
			s.Mode, s.Plain = mode, plain
		case strings.HasPrefix(parts[n-1], "/"):
			n++ // a guest path, and no mode
		default:
			return bad("%q is neither a mode (review, ro, rw-nodelete, rw) nor an absolute path in the guest", parts[n-1])
		}
		parts = parts[:n-1]
	}
	switch {
	case len(parts) > 1:
		return bad("it has too many colons: PATH[:GUESTPATH][:MODE], and a path with a colon cannot be shared")
	case len(parts) == 1:
		if !strings.HasPrefix(parts[0], "/") {
			return bad("the guest path %q is not absolute", parts[0])
		}
		s.GuestPath = path.Clean(parts[0])
	}
	if !filepath.IsAbs(host) {
		host = filepath.Join(cwd, host)
	}
	s.Path = filepath.Clean(host)
	for _, p := range []string{s.Path, s.GuestPath} {
		if err := nameable(p); err != nil {
			return nil, err
		}
	}
	if strings.ContainsFunc(s.Path+s.GuestPath, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return bad("a path has a control character")
	}
	return s, nil
}

// parseMiB reads a size in MiB: 512, 512M, 4G, 1T; "" is 0.
func parseMiB(flag, s string) (uint32, error) {
	if s == "" {
		return 0, nil
	}
	num := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
	unit := uint64(1)
	if len(num) > 0 {
		switch num[len(num)-1] {
		case 'M':
			num = num[:len(num)-1]
		case 'G':
			unit, num = 1<<10, num[:len(num)-1]
		case 'T':
			unit, num = 1<<20, num[:len(num)-1]
		}
	}
	n, err := strconv.ParseUint(num, 10, 32)
	if err != nil || n == 0 || n > math.MaxUint32/unit {
		return 0, fmt.Errorf("%s %q is not a size such as 512M or 4G", flag, s)
	}
	return uint32(n * unit), nil
}

// guestFolder returns where the guest sees the host's folder dir, through one
// of its shares; else its first share, else "".
func guestFolder(shares []*api.Share, dir string) string {
	at := func(s *api.Share) string {
		if s.GuestPath != "" {
			return s.GuestPath
		}
		return s.Path
	}
	for _, s := range shares {
		rel, err := filepath.Rel(s.Path, dir)
		if err == nil && filepath.IsLocal(rel) {
			return path.Join(at(s), filepath.ToSlash(rel))
		}
	}
	if len(shares) > 0 {
		return at(shares[0])
	}
	return ""
}

// shareWord describes a share as a person would have written it.
func shareWord(s *api.Share) string {
	w := s.Path
	if s.GuestPath != "" && s.GuestPath != s.Path {
		w += ":" + s.GuestPath
	}
	switch mode := modeWord(s.Mode); {
	case s.Plain:
		return w + ":" + mode + ",plain"
	case mode != "review":
		return w + ":" + mode
	}
	return w
}

func modeWord(m api.ShareMode) string {
	for word, is := range modes {
		if is == m {
			return word
		}
	}
	return "review" // what an unspecified mode means
}

// modeMeans says what a mode is for the folder on this machine.
func modeMeans(s *api.Share) string {
	means := "changes wait for review"
	switch s.Mode {
	case api.ShareMode_SHARE_MODE_RO:
		means = "read only"
	case api.ShareMode_SHARE_MODE_RW:
		means = "read and write"
	case api.ShareMode_SHARE_MODE_RW_NODELETE:
		means = "read and write, nothing is deleted or replaced"
	}
	if s.Plain {
		means += "; no name is hidden or protected"
	}
	return means
}
