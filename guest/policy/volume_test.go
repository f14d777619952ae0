package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

// A volume has a name and a place beside everything else in the guest; no name
// is a path of the host.
func TestVolumes(t *testing.T) {
	w := newWorld(t)
	v := func(name, at string) *api.VolumeMount { return &api.VolumeMount{Name: name, GuestPath: at} }
	many := func(n int) (vs []*api.VolumeMount) {
		for i := range n {
			vs = append(vs, v(fmt.Sprintf("v%d", i), fmt.Sprintf("/cache/%d", i)))
		}
		return vs
	}
	narrow := func(r *Rules) { r.Volumes.Names = []string{"npm-*", "go"} }
	for name, c := range map[string]struct {
		volumes  []*api.VolumeMount
		boundary string
		rules    func(*Rules)
		code     string // empty: granted
	}{
		"one":                    {volumes: []*api.VolumeMount{v("go", "/home/carrel/.cache/go-build")}},
		"in a machine":           {volumes: []*api.VolumeMount{v("go", "/cache")}, boundary: "vm"},
		"most":                   {volumes: many(4)},
		"too many":               {volumes: many(5), code: "volume_refused"},
		"missing":                {volumes: []*api.VolumeMount{nil}, code: "bad_name"},
		"behind gVisor":          {volumes: many(1), boundary: "gvisor", code: "volume_refused"},
		"in a process":           {volumes: many(1), boundary: "process", code: "volume_refused"},
		"no name":                {volumes: []*api.VolumeMount{v("", "/cache")}, code: "bad_name"},
		"a path for a name":      {volumes: []*api.VolumeMount{v("../guests/dev", "/cache")}, code: "bad_name"},
		"an absolute path":       {volumes: []*api.VolumeMount{v("/etc", "/cache")}, code: "bad_name"},
		"dots":                   {volumes: []*api.VolumeMount{v("..", "/cache")}, code: "bad_name"},
		"a hidden folder":        {volumes: []*api.VolumeMount{v(".new-x", "/cache")}, code: "bad_name"},
		"a zero byte":            {volumes: []*api.VolumeMount{v("a\x00b", "/cache")}, code: "bad_name"},
		"twice":                  {volumes: []*api.VolumeMount{v("a", "/a"), v("a", "/b")}, code: "volume_refused"},
		"one place":              {volumes: []*api.VolumeMount{v("a", "/a"), v("b", "/a")}, code: "volume_refused"},
		"in another":             {volumes: []*api.VolumeMount{v("a", "/a"), v("b", "/a/b")}, code: "volume_refused"},
		"beside another":         {volumes: []*api.VolumeMount{v("a", "/a"), v("b", "/ab")}},
		"on the share":           {volumes: []*api.VolumeMount{v("a", "/work")}, code: "volume_refused"},
		"in the share":           {volumes: []*api.VolumeMount{v("a", "/work/node_modules")}, code: "volume_refused"},
		"over the share":         {volumes: []*api.VolumeMount{v("a", "/")}, code: "volume_refused"},
		"beside the share":       {volumes: []*api.VolumeMount{v("a", "/workshop")}},
		"over the guest's":       {volumes: []*api.VolumeMount{v("a", "/etc/ssl")}, code: "volume_refused"},
		"over the agent's":       {volumes: []*api.VolumeMount{v("a", "/run/carrel")}, code: "volume_refused"},
		"relative":               {volumes: []*api.VolumeMount{v("a", "cache")}, code: "volume_refused"},
		"upwards":                {volumes: []*api.VolumeMount{v("a", "/cache/../etc")}, code: "volume_refused"},
		"policy: none":           {volumes: many(1), rules: func(r *Rules) { r.Volumes.Count = 0 }, code: "volume_refused"},
		"policy: fewer":          {volumes: many(2), rules: func(r *Rules) { r.Volumes.Count = 1 }, code: "volume_refused"},
		"policy: name":           {volumes: []*api.VolumeMount{v("npm-app", "/a"), v("go", "/b")}, rules: narrow},
		"policy: another name":   {volumes: []*api.VolumeMount{v("npm", "/a")}, rules: narrow, code: "volume_refused"},
		"zero rules allow none":  {volumes: many(1), rules: func(r *Rules) { r.Volumes = VolumeRules{} }, code: "volume_refused"},
		"policy: only processes": {volumes: many(1), rules: func(r *Rules) { r.MinBoundary = "process" }},
	} {
		rules := w.rules()
		if c.rules != nil {
			c.rules(&rules)
		}
		g, err := Decide(&api.GuestSpec{Name: "g", Boundary: c.boundary, Volumes: c.volumes, Shares: []*api.Share{{Path: w.project, GuestPath: "/work"}}}, rules)
		var r *Refusal
		switch {
		case c.code == "" && err != nil, c.code != "" && (!errors.As(err, &r) || r.Code != c.code):
			t.Errorf("%s: %v, want %q", name, err, c.code)
		case err == nil:
			if got := strings.Join(g.Boundaries(), " "); got != "vm" {
				t.Errorf("%s: the walls are %s", name, got)
			}
			cfg := g.Config(Parts{Dir: "/d", Kernel: "/k", Initrd: "/i", Root: "/r", Volumes: "/state/volumes"})
			if err := cfg.Check(); err != nil || len(cfg.Volumes) != len(c.volumes) {
				t.Errorf("%s: %v, %+v", name, err, cfg.Volumes)
			}
			for i, v := range cfg.Volumes {
				if want := "/state/volumes/" + c.volumes[i].Name + "/disk.img"; v.Path != want {
					t.Errorf("%s: the disk is %s, want %s", name, v.Path, want)
				}
			}
		}
	}
}

func TestVolumeSize(t *testing.T) {
	r := VolumeRules{MaxMiB: 4096, Count: 1}
	for mib, want := range map[uint32]uint32{0: 4096, 64: 64, 4096: 4096, 63: 0, 4097: 0, 1 << 31: 0} {
		got, err := r.CheckVolume("v", mib)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%d MiB: %d, %v", mib, got, err)
		}
	}
}

func TestVolumesOfAPolicyFile(t *testing.T) {
	f, problems := ParseFile([]byte("version: 1\nvolumes: {names: [go, 'npm-*'], size: 2GiB, count: 1}\nhost: {free: 5GiB}\n"), "policy.yaml")
	if f == nil {
		t.Fatal(problems)
	}
	r := f.Apply(Default("/nonexistent"))
	if r.Volumes.MaxMiB != 2048 || r.Volumes.Count != 1 || len(r.Volumes.Names) != 2 || r.MinFreeMiB == nil || *r.MinFreeMiB != 5<<10 {
		t.Errorf("%+v", r)
	}
	if r := f.Apply(Rules{Volumes: VolumeRules{MaxMiB: 64}}); r.Volumes.MaxMiB != 64 || r.Volumes.Count != 0 {
		t.Errorf("a file widened: %+v", r.Volumes)
	}
	if f, _ := ParseFile([]byte("version: 1\nvolumes: {names: []}\n"), "policy.yaml"); f == nil {
		t.Error("no names were refused")
	} else if _, err := f.Apply(Default("/nonexistent")).Volumes.CheckVolume("go", 0); err == nil {
		t.Error("an empty list of names allows one")
	}
	if f, _ := ParseRequest([]byte("version: 1\nvolumes: {count: 1}\n"), RequestName); f != nil {
		t.Error("a repository may ask for volumes")
	}
}
