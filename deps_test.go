// Package carrel_test holds the tests that are about the tree as a whole.
package carrel_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/carrel-vm/carrel/"

// arrows says which packages of ours a package may import. A key or value that
// ends in "/..." stands for a folder and all below it. The first key that
// matches counts.
var arrows = []struct {
	from   string
	to     []string
	reason string
}{
	{"cmd/carreld", []string{"guest/daemon", "guest", "guest/packet", "guest/api/...", "guest/audit", "guest/doctor", "guest/egress/...", "guest/inherit", "guest/place", "guest/policy", "guest/review", "guest/secret", "guest/service", "guest/share", "guest/share/control", "guest/share/rules", "images", "hypervisor/..."}, "it wires; nothing else does"},
	{"cmd/carrel-agent", []string{"agent/..."}, "the guest sees nothing of the host"},
	{"cmd/...", []string{"guest/client/...", "guest/api", "guest/place", "guest/service"}, "what a person runs knows only the API"},
	{"guest/disktest", nil, "it fails the disk of a test, whatever is tested"},
	{"guest/daemon/emptydisk", nil, "a disk is bytes"},
	{"guest/daemon/store", nil, "an index is rows; what they mean the daemon knows"},
	{"guest/daemon", []string{"guest", "guest/daemon/emptydisk", "guest/daemon/store", "guest/audit", "guest/doctor", "guest/policy", "guest/review", "guest/secret", "guest/share/rules", "guest/telemetry", "guest/api/...", "guest/inherit", "guest/place", "images", "hypervisor"}, "the daemon never names a driver and never parses a guest's bytes"},
	{"guest/client", []string{"guest/api/...", "guest/inherit", "guest/place"}, "the SDK is the API and nothing else"},
	{"guest/client/mcp", []string{"guest/client", "guest/api"}, "an agent gets what a user of the SDK has, and less"},
	{"guest/client/examples/...", []string{"guest/client", "guest/api"}, "they show what a user of the SDK can do"},
	{"guest/policy", []string{"hypervisor", "guest/api", "guest/share/rules"}, "it decides on plain data"},
	{"guest/api/...", []string{"guest/api/..."}, "it is generated"},
	{"guest/inherit", nil, "it starts a process, whichever"},
	{"guest/packet", []string{"guest/inherit"}, "it passes bytes and files between processes of ours"},
	{"guest/egress/link", []string{"guest/inherit", "guest/packet"}, "a keeper and its egress process share it"},
	{"guest/egress/egresstest", nil, "a world for tests knows nothing of what is tested in it"},
	{"guest/egress", []string{"guest/policy", "guest/secret", "guest/api/...", "guest/wire", "guest/egress/link"}, "it parses hostile bytes; policy decides, and it carries out what was decided"},
	{"guest/secret", []string{"guest/api", "guest/place"}, "credentials know nothing of guests"},
	{"guest/telemetry", nil, "it sends records, and knows nothing of what they are about"},
	{"guest/audit", nil, "a log is lines"},
	{"guest/service", nil, "it writes files and runs the system's commands, as data say"},
	{"guest/doctor", []string{"guest/api"}, "it judges facts, and knows nothing of what is started"},
	{"guest/share/control", []string{"guest/inherit", "guest/packet", "guest/share/rules"}, "a share process and those that start and keep it share it"},
	{"guest/share/rules", nil, "it judges names, and touches nothing"},
	{"guest/share", []string{"guest/share/rules"}, "it parses a hostile guest's bytes and must stand alone"},
	{"guest/review", []string{"guest/share", "guest/share/rules", "guest/api", "guest/wire"}, "it parses a hostile guest's change set, and writes beneath a pinned root through the share server's own engine"},
	{"guest/wire", nil, "both sides of the boundary import it"},
	{"guest/place", nil, "everybody asks it"},
	{"guest", []string{"hypervisor", "guest/audit", "guest/egress/link", "guest/inherit", "guest/packet", "guest/policy", "guest/review", "guest/share/control", "guest/api/...", "guest/place", "guest/wire"}, "a guest never names its driver"},
	{"agent/proxy", []string{"guest/wire"}, "it takes hostile bytes to the host and decides nothing"},
	{"agent/...", []string{"guest/wire", "agent/..."}, "the agent never sees the host's side"},
	{"hypervisor/hcs/hcstest", nil, "it carries a test's bytes, whatever they are"},
	{"hypervisor/hcs", []string{"hypervisor", "hypervisor/hcs/hcstest", "hypervisor/wall", "hypervisor/hypervisortest/..."}, "its description of a guest is a function of plain data"},
	{"hypervisor/hypervisortest/...", []string{"hypervisor/...", "guest/wire"}, "the test driver runs the real agent"},
	{"hypervisor/qemu/vhostuser", []string{"hypervisor"}, "devices serve whoever wires them"},
	{"hypervisor/vz", []string{"hypervisor"}, "its plan is a function of plain data, and nobody else names Apple's framework"},
	{"hypervisor/seatbelt", []string{"hypervisor"}, "its profile is a function of plain data"},
	{"hypervisor/...", []string{"hypervisor/..."}, "drivers know the seam"},
	{"images/bundle", nil, "it judges what a stranger's bundle says and knows nothing of stores or registries"},
	{"images/oci", nil, "it parses hostile images and knows nothing of stores"},
	{"images", []string{"images/..."}, "images are files"},
	{"", nil, "the root holds only this test"},
}

func TestArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, bad := range forbidden(p.ImportPath, p.Imports) {
			t.Error(bad)
		}
	}
	if seen < 10 {
		t.Fatalf("go list named only %d packages", seen)
	}
}

// TestAgentLight: what a machine's agent does not need it does not bring. All that a
// program imports is set up when it starts: for an agent at each boot.
func TestAgentLight(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./cmd/carrel-agent")
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := strings.Fields(string(out))
	if !slices.Contains(all, "net") {
		t.Fatalf("go list names only %d packages", len(all))
	}
	for _, heavy := range []string{"net/http", "crypto/tls", "crypto/x509"} {
		if slices.Contains(all, heavy) {
			t.Errorf("the agent brings %s (go list -deps ./cmd/carrel-agent; what macOS alone needs is for darwin, or for the tag carrelbeside)", heavy)
		}
	}
}

// TestArrowsCatch shows that the test above can fail.
func TestArrowsCatch(t *testing.T) {
	if got := forbidden(module+"guest/share", []string{"fmt", module + "guest/policy"}); len(got) != 1 {
		t.Errorf("a share server that imports policy: %q", got)
	}
	if got := forbidden(module+"guest", []string{module + "hypervisor/qemu"}); len(got) != 1 {
		t.Errorf("a guest that names a driver: %q", got)
	}
	if got := forbidden(module+"new/room", nil); len(got) != 1 {
		t.Errorf("a package that no arrow knows: %q", got)
	}
}

func forbidden(pkg string, imports []string) (bad []string) {
	from := strings.TrimPrefix(strings.TrimPrefix(pkg, strings.TrimSuffix(module, "/")), "/")
	for _, a := range arrows {
		if !match(a.from, from) {
			continue
		}
		for _, i := range imports {
			to, ours := strings.CutPrefix(i, module)
			if !ours {
				continue
			}
			ok := false
			for _, allowed := range a.to {
				ok = ok || match(allowed, to)
			}
			if !ok {
				bad = append(bad, from+" may not import "+to+": "+a.reason)
			}
		}
		return bad
	}
	return []string{from + " has no place in the arrows of deps_test.go"}
}

func match(pattern, pkg string) bool {
	if dir, all := strings.CutSuffix(pattern, "/..."); all {
		return pkg == dir || strings.HasPrefix(pkg, dir+"/")
	}
	return pattern == pkg
}
