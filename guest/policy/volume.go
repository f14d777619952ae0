package policy

import (
	"path"
	"path/filepath"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

// VolumeRules say which volumes guests may have.
type VolumeRules struct {
	// MaxMiB bounds one volume; Count bounds those of one guest, 0: none.
	MaxMiB uint32
	Count  int
	// Names are patterns of allowed names, in which "*" stands for any
	// characters; nil: any name.
	Names []string
}

// volumeDisk is the disk of a volume, in the volume's own folder.
const volumeDisk = "disk" + hypervisor.DiskExt

// VolumeDisk is where a volume's disk lies beneath the folder of all volumes.
// The name was checked.
func VolumeDisk(volumes, name string) string { return filepath.Join(volumes, name, volumeDisk) }

// CheckVolume refuses a volume's name or size. 0 stands for the default size;
// the size that it has is returned.
func (r VolumeRules) CheckVolume(name string, mib uint32) (uint32, error) {
	if !hypervisor.ValidName(name) {
		return 0, refuse("bad_name", "use lower-case letters, digits and dashes, at most 31, not beginning with a dash", "volume name %q is not possible", clip(name))
	}
	if r.Count < 1 {
		return 0, refuse("volume_refused", "volumes.count in policy.yaml says how many", "the policy allows no volumes")
	}
	allowed := r.Names == nil
	for _, p := range r.Names {
		ok, err := path.Match(p, name)
		allowed = allowed || err == nil && ok
	}
	if !allowed {
		return 0, refuse("volume_refused", "volumes.names in policy.yaml lists those that may be: "+plain(strings.Join(r.Names, ", "), 200), "the policy does not allow a volume named %s", name)
	}
	if mib == 0 {
		mib = min(DefaultDiskMiB, r.MaxMiB)
	}
	if mib < minDiskMiB || mib > r.MaxMiB {
		return 0, refuse("too_large", "", "a volume of %d MiB asked for; between %d and %d are allowed", mib, minDiskMiB, r.MaxMiB)
	}
	return mib, nil
}

// decideVolumes checks a request's volumes: a volume lies beside what is shared,
// never in it, on it or above it, so that no path of the host is behind one and
// no volume hides what is in review.
func decideVolumes(s *api.GuestSpec, rules VolumeRules) error {
	if len(s.Volumes) == 0 {
		return nil
	}
	if len(s.Volumes) > min(rules.Count, hypervisor.MaxVolumes) {
		return refuse("volume_refused", "use fewer volumes, or one with folders in it", "%d volumes asked for; %d are allowed", len(s.Volumes), min(rules.Count, hypervisor.MaxVolumes))
	}
	if s.Boundary != "" && s.Boundary != boundaries[0] {
		return refuse("volume_refused", "use --boundary vm, or leave --volume away", "a volume is a disk, which a guest behind the wall %q cannot have", clip(s.Boundary))
	}
	var taken []string
	for _, sh := range s.Shares {
		taken = append(taken, sh.GuestPath)
	}
	for i, v := range s.Volumes {
		if v == nil {
			return refuse("bad_request", "", "a volume is missing")
		}
		if _, err := rules.CheckVolume(v.Name, 0); err != nil {
			return err
		}
		for _, other := range s.Volumes[:i] {
			if other.Name == v.Name {
				return refuse("volume_refused", "name it once", "volume %s is asked for twice", v.Name)
			}
		}
		if err := checkGuestPath(v.GuestPath); err != nil {
			r := err.(*Refusal)
			return refuse("volume_refused", "choose another place: --volume "+v.Name+":PATH", "volume %s: %s", v.Name, r.Reason)
		}
		for _, t := range taken {
			if under(v.GuestPath, t) || under(t, v.GuestPath) {
				return refuse("volume_refused", "choose a place apart from it: --volume "+v.Name+":PATH", "volume %s wants to be at %q, and %q is there already: a share or another volume", v.Name, clip(v.GuestPath), clip(t))
			}
		}
		taken = append(taken, v.GuestPath)
	}
	return nil
}

// under says whether a path of the guest is another one or lies in it.
func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
