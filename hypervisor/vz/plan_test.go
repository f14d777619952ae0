package vz

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/hypervisor"
)

var update = flag.Bool("update", false, "write the golden files")

func host(arch string, major, minor int) Host {
	return Host{Arch: arch, MacOS: Version{major, minor}, Virtual: true, MinCPUs: 1, MaxCPUs: 8, MinMemory: 128 << 20, MaxMemory: 16 << 30}
}

func config(change ...func(*hypervisor.Config)) hypervisor.Config {
	c := hypervisor.Config{
		Name: "quiet-otter", Dir: "/state/guests/quiet-otter", Kernel: "/cache/Image", Initrd: "/cache/initrd", Root: "/cache/root.erofs",
		CPUs: 2, MemoryMiB: 2048,
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func scratch(c *hypervisor.Config) { c.Scratch = "/state/guests/quiet-otter/scratch.img" }

func volume(c *hypervisor.Config) {
	c.Volumes = append(c.Volumes, hypervisor.Volume{Serial: fmt.Sprintf("volume%d", len(c.Volumes)), Path: "/state/volumes/cache/disk.img", GuestPath: "/cache"})
}

func share(s hypervisor.Share) func(*hypervisor.Config) {
	return func(c *hypervisor.Config) {
		s.Tag = fmt.Sprintf("share%d", len(c.Shares))
		if s.Path == "" {
			s.Path = "/Users/u/" + s.Tag
		}
		s.GuestPath = s.Path
		c.Shares = append(c.Shares, s)
	}
}

func TestPlanGolden(t *testing.T) {
	for name, tc := range map[string]struct {
		c hypervisor.Config
		h Host
	}{
		"bare-arm64-12":  {config(), host(ARM64, 12, 0)},
		"bare-amd64-13":  {config(), host(AMD64, 13, 6)},
		"disks-arm64-14": {config(scratch, volume, volume), host(ARM64, 14, 5)},
		"shares-arm64-15": {config(scratch,
			share(hypervisor.Share{ReadOnly: true, Overlay: true, Layer: "0a1b"}),              // review, with rules
			share(hypervisor.Share{Plain: true, ReadOnly: true}),                               // PATH:ro,plain
			share(hypervisor.Share{Plain: true}),                                               // PATH:rw,plain
			share(hypervisor.Share{}),                                                          // rw, with rules
			share(hypervisor.Share{Plain: true, Overlay: true, ReadOnly: true, Layer: "2c3d"}), // PATH:review,plain
		), host(ARM64, 15, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := MakePlan(tc.c, tc.h)
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.MarshalIndent(p, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got, file := string(b)+"\n", filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("differs from %s:\n%s\nif it should: go test ./hypervisor/vz -run PlanGolden -update", file, got)
			}
		})
	}
}

// TestPlanHolds checks for many Configs what no golden file should ever lose.
func TestPlanHolds(t *testing.T) {
	for bits := range 1 << 6 {
		for n := range maxDevices + 3 {
			s := hypervisor.Share{ReadOnly: bits&1 != 0, Overlay: bits&2 != 0, Plain: bits&4 != 0}
			c := config()
			for range n {
				share(s)(&c)
			}
			share(hypervisor.Share{ReadOnly: bits&8 != 0, Overlay: bits&16 != 0, Plain: bits&32 != 0})(&c)
			p, err := MakePlan(c, host(ARM64, 14, 0))
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Mounts) != len(c.Shares) || len(p.Shares) > maxDevices {
				t.Fatalf("%d mounts and %d devices for %d shares", len(p.Mounts), len(p.Shares), len(c.Shares))
			}
			devices := map[string]Device{}
			for _, d := range p.Shares {
				devices[d.Tag] = d
			}
			for i, s := range c.Shares {
				d, device := devices[s.Tag]
				m := p.Mounts[i]
				switch {
				case device != (m.Type == "virtiofs"):
					t.Errorf("%+v: device %t, mounted as %s", s, device, m.Type)
				case device && !s.Plain:
					t.Errorf("%+v has rules, and the framework serves it", s)
				case device && (s.ReadOnly || s.Overlay) && !d.ReadOnly:
					t.Errorf("%+v can be written", s)
				case device && d.Path != s.Path, m.Tag != s.Tag, m.GuestPath != s.GuestPath, m.ReadOnly != s.ReadOnly, m.Overlay != s.Overlay:
					t.Errorf("%+v became %+v and %+v", s, d, m)
				}
			}
			if !p.Disks[0].ReadOnly || p.Disks[0].Path != c.Root {
				t.Errorf("the root image is %+v", p.Disks[0])
			}
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	set := func(f func(*hypervisor.Config)) func(*hypervisor.Config) { return f }
	for name, tc := range map[string]struct {
		c    hypervisor.Config
		h    Host
		want string // empty: it is made
	}{
		"control":            {config(scratch), host(ARM64, 14, 0), ""},
		"no name":            {config(set(func(c *hypervisor.Config) { c.Name = "" })), host(ARM64, 14, 0), "guest name"},
		"a word with spaces": {config(set(func(c *hypervisor.Config) { c.Cmdline = []string{"a b"} })), host(ARM64, 14, 0), "command line"},
		"macOS 11":           {config(), host(AMD64, 11, 7), "macOS 12 or later is needed, and this is macOS 11.7"},
		"volume on 12.2":     {config(volume), host(ARM64, 12, 2), "a volume: macOS 12.3 or later is needed, and this is macOS 12.2"},
		"volume on 12.3":     {config(volume), host(ARM64, 12, 3), ""},
		"volume on 12.10":    {config(volume), host(ARM64, 12, 10), ""}, // the module reads 12.10 as 12.1
		"no support":         {config(), Host{Arch: ARM64, MacOS: Version{14, 0}, MinCPUs: 1, MaxCPUs: 8, MaxMemory: 1 << 40}, "kern.hv_support"},
		"PowerPC":            {config(), host("ppc", 14, 0), `processor "ppc"`},
		"nine CPUs":          {config(set(func(c *hypervisor.Config) { c.CPUs = 9 })), host(ARM64, 14, 0), "between 1 and 8"},
		"much memory":        {config(set(func(c *hypervisor.Config) { c.MemoryMiB = 16<<10 + 1 })), host(ARM64, 14, 0), "between 128 and 16384"},
	} {
		_, err := MakePlan(tc.c, tc.h)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		var he *hypervisor.Error
		if err != nil && !errors.As(err, &he) {
			t.Errorf("%s: %T", name, err)
		}
	}
}

func TestSavable(t *testing.T) {
	for name, tc := range map[string]struct {
		c    hypervisor.Config
		h    Host
		want string
	}{
		"control":     {config(scratch, volume, share(hypervisor.Share{})), host(ARM64, 14, 0), ""},
		"Intel":       {config(), host(AMD64, 15, 0), "Apple's own processors"},
		"macOS 13":    {config(), host(ARM64, 13, 7), "macOS 14 or later is needed, and this is macOS 13.7"},
		"plain share": {config(share(hypervisor.Share{Plain: true})), host(ARM64, 14, 0), "virtio-fs"},
	} {
		p, err := MakePlan(tc.c, tc.h)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := p.Savable(tc.h); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]string{
		"14.5.1": "14.5", "15": "15", "13.0": "13", "12.10": "12.10", "26.0.1": "26",
		"": "error", "x": "error", "14.x": "error", "-1.2": "error", "14.-2": "error",
	} {
		v, err := ParseVersion(in)
		got := v.String()
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	if (Version{12, 10}).Less(Version{12, 3}) || !(Version{12, 3}).Less(Version{12, 10}) || !(Version{12, 9}).Less(Version{13, 0}) {
		t.Error("versions are compared as decimals")
	}
}

func TestCheckKernel(t *testing.T) {
	arm := make([]byte, kernelHead)
	copy(arm[56:], "ARM\x64")
	x86 := make([]byte, kernelHead)
	x86[0x1fe], x86[0x1ff] = 0x55, 0xaa
	copy(x86[0x202:], "HdrS")
	x86[0x236] = 1
	old := append([]byte(nil), x86...)
	old[0x236] = 0 // starts in 16 or 32 bits only
	zboot := append([]byte("MZ\x00\x00zimg"), make([]byte, 100)...)
	for name, tc := range map[string]struct {
		head []byte
		arch string
		want string
	}{
		"Image":          {arm, ARM64, ""},
		"bzImage":        {x86, AMD64, ""},
		"other's Image":  {arm, AMD64, "uncompressed Image for arm64, and this Mac needs a bzImage"},
		"other bzImage":  {x86, ARM64, "is a bzImage for x86-64"},
		"gzip":           {append([]byte{0x1f, 0x8b}, arm...), ARM64, "is a compressed kernel"},
		"EFI zboot":      {zboot, ARM64, "is a compressed kernel"},
		"32 bits":        {old, AMD64, "no Linux kernel"},
		"empty":          {nil, ARM64, "no Linux kernel"},
		"a few bytes":    {[]byte("HdrS"), AMD64, "no Linux kernel"},
		"text":           {[]byte(strings.Repeat("x", 4096)), ARM64, "no Linux kernel"},
		"cut before end": {arm[:60], ARM64, "no Linux kernel"},
	} {
		path := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(path, tc.head, 0o600); err != nil {
			t.Fatal(err)
		}
		err := CheckKernel(path, tc.arch)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if err := CheckKernel(t.TempDir(), ARM64); err == nil {
		t.Error("a folder is a kernel")
	}
}

func TestCure(t *testing.T) {
	for _, code := range []int{codeInternal, codeConfiguration, codeDiskImage, codeLimit, codeNoSpace, codeSave, codeRestore} {
		if cure(errorDomain, code) == "" {
			t.Errorf("code %d has no cure", code)
		}
		if cure("NSPOSIXErrorDomain", code) != "" {
			t.Errorf("code %d of another domain has one", code)
		}
	}
	if got := cure(errorDomain, 4711); got != "" {
		t.Errorf("a code that is unknown: %q", got)
	}
}
