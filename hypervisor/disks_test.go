package hypervisor

import (
	"fmt"
	"strings"
	"testing"
)

func TestCheckVolumes(t *testing.T) {
	some := func(n int) (vs []Volume) {
		for i := range n {
			vs = append(vs, Volume{Serial: fmt.Sprintf("volume%d", i), Path: "/v/disk.img", GuestPath: "/cache"})
		}
		return vs
	}
	for name, tc := range map[string]struct {
		volumes []Volume
		want    string
	}{
		"none":         {nil, ""},
		"most":         {some(MaxVolumes), ""},
		"many":         {some(MaxVolumes + 1), "5 volumes"},
		"wrong serial": {[]Volume{{Serial: "volume1", Path: "/v"}}, "want volume0"},
		"relative":     {[]Volume{{Serial: "volume0", Path: "v"}}, "not absolute"},
	} {
		c := good()
		c.Volumes = tc.volumes
		err := c.Check()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if err := c.CheckWithoutDisks(); (err == nil) != (len(tc.volumes) == 0) {
			t.Errorf("%s, without disks: %v", name, err)
		}
	}
}
