package guest

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// What cannot change in a guest that runs is each a reason, and what can is none.
func TestFixed(t *testing.T) {
	is := &api.GuestSpec{Name: "a", Image: "default", Cpus: 2, MemoryMib: 512, DiskMib: 64, Ephemeral: true}
	for _, c := range []struct {
		change func(*api.GuestSpec)
		fits   bool
	}{
		{func(*api.GuestSpec) {}, true},
		{func(s *api.GuestSpec) { s.Ephemeral = false }, true},
		{func(s *api.GuestSpec) { s.Shares = []*api.Share{{Path: "/x"}} }, true},
		{func(s *api.GuestSpec) { s.Egress = &api.EgressSpec{Presets: []string{"packages"}} }, true},
		{func(s *api.GuestSpec) { s.Name = "b" }, false},
		{func(s *api.GuestSpec) { s.Image = "other" }, false},
		{func(s *api.GuestSpec) { s.Cpus = 1 }, false},
		{func(s *api.GuestSpec) { s.MemoryMib = 256 }, false},
		{func(s *api.GuestSpec) { s.DiskMib = 0 }, false},
		{func(s *api.GuestSpec) { s.Boundary = "process" }, false},
		{func(s *api.GuestSpec) { s.Volumes = []*api.VolumeMount{{Name: "v"}} }, false},
	} {
		s := proto.Clone(is).(*api.GuestSpec)
		c.change(s)
		if why := Fixed(is, s); (why == "") != c.fits {
			t.Errorf("%v: %q", s, why)
		}
	}
	// A setting that this does not know may be one that is fixed.
	const known = 10
	if n := is.ProtoReflect().Descriptor().Fields().Len(); n != known {
		t.Errorf("a guest's request has %d settings, and Fixed was written for %d: what of the new one?", n, known)
	}
}
