package hcs

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/osversion"

	"github.com/carrel-vm/carrel/hypervisor"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	goldenID   = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
	goldenUser = "S-1-5-21-1004336348-1177238915-682003330-1001"
)

func goldenConfig() hypervisor.Config {
	return hypervisor.Config{
		Name: "quiet-otter", Dir: `C:\g`, CPUs: 2, MemoryMiB: 2047,
		Kernel: `C:\Users\Ann Ö\AppData\Local\carrel\cache\vmlinuz`, Initrd: `C:\c\initrd`, Root: `C:\c\root.erofs`,
	}
}

func goldenMachine() Machine {
	return Machine{
		ID: goldenID, Arch: AMD64, Build: 22631, User: goldenUser, Console: ConsolePipe(goldenID), Root: `C:\g\root.vhd`,
	}
}

func TestDocument(t *testing.T) {
	for name, change := range map[string]func(*hypervisor.Config, *Machine){
		"plain":     func(*hypervisor.Config, *Machine) {},
		"windows10": func(_ *hypervisor.Config, m *Machine) { m.Build = osversion.V22H2Win10 },
		"scratch": func(c *hypervisor.Config, m *Machine) {
			c.Scratch, m.Scratch, c.Cmdline = `C:\g\scratch.img`, `C:\g\scratch.img`, []string{"carrel.x=1"}
		},
		"arm64": func(_ *hypervisor.Config, m *Machine) { m.Arch, m.Boot = ARM64, `C:\g\boot` },
		"volumes": func(c *hypervisor.Config, m *Machine) {
			c.Volumes = []hypervisor.Volume{{Serial: "volume0", Path: `C:\v\a`, GuestPath: "/a"}, {Serial: "volume1", Path: `C:\v\b`, GuestPath: "/b"}}
			m.Volumes = []string{`C:\v\a`, `C:\v\b`}
		},
		// Shares come over vsock: the description does not name them.
		"shares": func(c *hypervisor.Config, _ *Machine) {
			c.Shares = []hypervisor.Share{{Tag: "share0", Path: `C:\code`, GuestPath: "/mnt/c/code"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, m := goldenConfig(), goldenMachine()
			change(&c, &m)
			got, err := Document(c, m)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := json.Indent(&b, got, "", "  "); err != nil {
				t.Fatal(err)
			}
			b.WriteByte('\n')
			file := filepath.Join("testdata", "document", name+".json")
			if *update {
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.Bytes(), bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n"))) {
				t.Errorf("the description is another than %s:\n%s", file, b.Bytes())
			}
		})
	}
}

// TestDocumentRefuses has a good one beside each: goldenConfig and goldenMachine.
func TestDocumentRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*hypervisor.Config, *Machine)
		want   string
	}{
		"no name":           {func(c *hypervisor.Config, _ *Machine) { c.Name = "" }, "guest name"},
		"a volume too much": {func(_ *hypervisor.Config, m *Machine) { m.Volumes = []string{`C:\v`} }, "volumes"},
		"two words":         {func(c *hypervisor.Config, _ *Machine) { c.Cmdline = []string{"a b"} }, "command line"},
		"a quote":           {func(c *hypervisor.Config, _ *Machine) { c.Cmdline = []string{`a"b`} }, "command line"},
		"an empty word":     {func(c *hypervisor.Config, _ *Machine) { c.Cmdline = []string{""} }, "command line"},
		"another processor": {func(_ *hypervisor.Config, m *Machine) { m.Arch = "386" }, "processors"},
		"an old Windows":    {func(_ *hypervisor.Config, m *Machine) { m.Build = osversion.V19H2 }, "older"},
		"no user":           {func(_ *hypervisor.Config, m *Machine) { m.User = "" }, "SID"},
		"the world":         {func(_ *hypervisor.Config, m *Machine) { m.User = "S-1-1-0)(A;;FA;;;WD" }, "SID"},
		"a name":            {func(_ *hypervisor.Config, m *Machine) { m.User = "WD" }, "SID"},
		"no id":             {func(_ *hypervisor.Config, m *Machine) { m.ID = "" }, "GUID"},
		"another console":   {func(_ *hypervisor.Config, m *Machine) { m.Console = `\\.\pipe\x` }, "console"},
		"a disk too much":   {func(_ *hypervisor.Config, m *Machine) { m.Scratch = `C:\x` }, "scratch"},
		"a disk too few":    {func(c *hypervisor.Config, _ *Machine) { c.Scratch = `C:\x` }, "scratch"},
		"another system":    {func(c *hypervisor.Config, _ *Machine) { c.Kernel = "/vmlinuz" }, "path"},
		"a network path":    {func(_ *hypervisor.Config, m *Machine) { m.Root = `\\server\share\root.vhd` }, "path"},
		"of the drive":      {func(_ *hypervisor.Config, m *Machine) { m.Root = `C:root.vhd` }, "path"},
		"a control":         {func(_ *hypervisor.Config, m *Machine) { m.Root = "C:\\a\x00b" }, "path"},
		"a long path":       {func(_ *hypervisor.Config, m *Machine) { m.Root = `C:\` + strings.Repeat("a", maxPath) }, "path"},
		"no boot folder":    {func(_ *hypervisor.Config, m *Machine) { m.Arch = ARM64 }, "path"},
	} {
		c, m := goldenConfig(), goldenMachine()
		tc.change(&c, &m)
		if _, err := Document(c, m); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestNobodyElse looks for what a guest shall never have, in words of the schema.
func TestNobodyElse(t *testing.T) {
	b, err := Document(goldenConfig(), goldenMachine())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "D:P(A;;FA;;;SY)(A;;FA;;;"+goldenUser+")") {
		t.Errorf("the user's access list is missing in %s", b)
	}
	for _, word := range []string{"NetworkAdapters", "Plan9", "VirtualSmb", "GuestConnection", "VirtualPci", "Keyboard", "AllowWildcardBinds", ";WD)", ";BA)", "ExposeVirtualizationExtensions"} {
		if strings.Contains(string(b), word) {
			t.Errorf("the guest has %s: %s", word, b)
		}
	}
}
