package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// secrets are folders in a home that hold credentials or other programs'
// private state: they may not be shared, nor what lies in them.
var secrets = []string{
	".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".config", ".local", ".mozilla", ".password-store",
	"Library", "AppData",
}

// system are folders of the host whose sharing would hand over the machine.
// Each is refused with all that lies in it, but for what below says.
var system = []string{"/proc", "/sys", "/dev", "/run", "/var/run", "/boot", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/var/lib", "/System", "/private/etc", "/private/var/run"}

// wide are folders that hold too much to be meant; what lies in them may be shared.
var wide = []string{"/", "/usr", "/var", "/opt", "/home", "/Users", "/Volumes", "/mnt", "/media", "/tmp", "/var/tmp", "/private", "/private/tmp", "/private/var", "/srv"}

// dangerous refuses the roots that nobody means to share.
func dangerous(p string, rules Rules) error {
	no := func(why string) error {
		return refuse("share_refused", "share the one folder that the task needs", "share %q is refused: %s", clip(p), why)
	}
	if !filepath.IsAbs(p) || filepath.Clean(p) != p {
		return refuse("bad_path", "give the folder's full path", "share %q is not an absolute, clean path", clip(p))
	}
	for _, w := range wide {
		if p == w {
			return no("it is a whole part of this machine, not a project")
		}
	}
	if filepath.VolumeName(p)+string(filepath.Separator) == p {
		return no("it is a whole drive")
	}
	switch filepath.Dir(p) { // with sudo, "the home directory" is root's
	case "/home", "/Users":
		return no("it is a user's home directory")
	}
	for _, s := range system {
		if within(p, s) {
			return no("it belongs to the system (" + s + ")")
		}
	}
	home := resolved(rules.Home)
	if home == "/" {
		home = "" // a user without a home of their own
	}
	if home != "" && p == home {
		return no("it is the home directory")
	}
	for _, own := range rules.Own {
		own = resolved(own)
		switch {
		case own == "":
		case within(p, own):
			return no("it lies in Carrel's own folder " + own + ", which is never shared")
		case within(own, p):
			return no("it contains Carrel's own folder " + own + ", which is never shared")
		}
	}
	if home == "" {
		return nil
	}
	if within(home, p) {
		return no("it contains the home directory")
	}
	for _, s := range secrets {
		if within(p, filepath.Join(home, s)) {
			return no("~/" + s + " holds credentials or other programs' private state")
		}
	}
	return nil
}

// resolved follows links, since what is compared with has none; a folder that
// does not exist yet is taken as it is written.
func resolved(p string) string {
	if p == "" {
		return ""
	}
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return filepath.Clean(p)
}

// within says whether p is dir or lies in it. Case folds where the host's file
// systems usually do, so that another spelling is no way round.
func within(p, dir string) bool {
	if foldsCase {
		p, dir = strings.ToLower(p), strings.ToLower(dir)
	}
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, string(filepath.Separator))+string(filepath.Separator))
}

// pinFolder looks at the folder without following a link anywhere on the way.
func pinFolder(p string) (Pin, error) {
	no := func(cure, why string) error {
		return refuse("share_refused", cure, "share %q is refused: %s", clip(p), why)
	}
	vol := filepath.VolumeName(p)
	at := vol + string(filepath.Separator)
	for _, c := range strings.Split(strings.Trim(p[len(vol):], string(filepath.Separator)), string(filepath.Separator)) {
		at = filepath.Join(at, c)
		fi, err := os.Lstat(at)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return Pin{}, no("choose the folder again: it may have been moved", at+" does not exist")
		case err != nil:
			return Pin{}, no("", err.Error())
		case fi.Mode()&os.ModeSymlink != 0:
			return Pin{}, no("give the path of the folder itself", at+" is a symbolic link")
		case !fi.IsDir():
			return Pin{}, no("share the folder that holds it", at+" is not a folder")
		}
		if at == p {
			dev, ino, err := identity(p, fi)
			if err != nil {
				return Pin{}, no("", err.Error())
			}
			return Pin{Path: p, Dev: dev, Ino: ino}, nil
		}
	}
	return Pin{}, no("", "it could not be opened")
}

// readOnly says that the host's folder stays as it is whatever the guest does.
func readOnly(m api.ShareMode) bool {
	return m != api.ShareMode_SHARE_MODE_RW && m != api.ShareMode_SHARE_MODE_RW_NODELETE
}

// inReview says whether a share is, or will be by default, one whose changes
// are reviewed.
func inReview(s *api.Share) bool {
	m := s.GetMode()
	return m == api.ShareMode_SHARE_MODE_REVIEW || m == api.ShareMode_SHARE_MODE_UNSPECIFIED
}

// Layer names what is kept of a share, the same at every start.
func Layer(s *api.Share) string { return layer(s) }

// layer is Layer.
func layer(s *api.Share) string {
	sum := sha256.Sum256([]byte(s.Path + "\x00" + s.GuestPath))
	return hex.EncodeToString(sum[:8])
}
