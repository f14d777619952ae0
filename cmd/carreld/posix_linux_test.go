package main

import (
	"bufio"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/client"
)

// casesDiffer are the cases of go-fuse's suite that do not pass in a guest's share, and how they end. The suite
// itself skips what it takes for a limit of a file system's, which is as much a difference. guest/share has such a
// list for the server without a machine (posix_linux_test.go).
var casesDiffer = map[string]struct{ how, why string }{
	"FcntlFlockLocksFile": {"fail", "it fails in a tmpfs, too: one process does not lock itself out"},
	"OpenSymlinkRace":     {"fail or pass", "a race: a name that is replaced twice while one open looks it up is ESTALE, which the suite does not count"},
	"RenameOpenDir":       {"skip", "an open folder whose name another has taken is ESTALE: a folder is found by its name"},
	"SetattrSymlink":      {"fail", "the calls for a link's own times take any name of the host, and are refused to a confined server"},
	"Tmpfile":             {"skip", "files without a name are not served"},
	"XAttr":               {"skip", "extended attributes are not served"},
	"XAttrLarge":          {"skip", "extended attributes are not served"},
}

// casesProgram is guest/share's tests in the guest, of which TestPlainFolder is run.
const casesProgram = "/home/cases"

// told is what it said.
type told struct {
	ended map[string]string // a case of go-fuse's suite: pass, fail, skip
	lines []string          // what each sequence was told
	all   string
}

func parseTold(out string) told {
	p := told{ended: map[string]string{}, all: out}
	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) == 3 && w[0] == "posix" {
			p.ended[w[1]] = w[2]
		} else if strings.HasPrefix(lines.Text(), "fidelity ") {
			p.lines = append(p.lines, lines.Text())
		}
	}
	return p
}

// testPosix runs go-fuse's suite and the sequences of TestFidelity as the guest's user, over virtio-fs and over
// vsock (a file system of the kind "fuse"). The same program in a tmpfs of the guest's is the control of both; what the sequences leave is compared
// with what they leave in a folder of the host's.
func testPosix(t *testing.T, w *world, c *client.Client, f sharedFolders) {
	streamed := filepath.Join(w.work, "cases")
	if err := os.Mkdir(streamed, 0o755); err != nil {
		t.Fatal(err)
	}
	k := apiconnect.NewKeeperServiceClient(unixClient(guest.SocketPath(filepath.Join(w.home, "run"), "box")), "http://keeper")
	if err := live(t, w, k, "cases", streamed); err != nil {
		t.Fatal(err)
	}
	bin := carry(t, c, casesProgram, "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "../../guest/share")
	run := func(t *testing.T, dir, kind string) told {
		t.Helper()
		if r := sh(t, c, "box", "", "df --output=fstype "+dir+" | tail -n 1"); r.out != kind+"\n" {
			t.Fatalf("%s is of the kind %q, not %s", dir, r.out, kind)
		}
		begun := time.Now()
		r := sh(t, c, "box", "", "mkdir "+dir+"/cases && CARREL_TEST_FOLDER="+dir+"/cases "+casesProgram+" -test.v -test.run '^TestPlainFolder$'")
		t.Logf("%s, by %s: %v", dir, kind, time.Since(begun).Round(100*time.Millisecond))
		return parseTold(r.out)
	}
	control := run(t, "/dev/shm", "tmpfs")
	for name := range posixtest.All {
		if how := control.ended[name]; how != "pass" && (name != "FcntlFlockLocksFile" || how != "fail") {
			t.Errorf("control: in a tmpfs %s ended with %q", name, how)
		}
	}
	if len(control.lines) < 1600 || t.Failed() { // most of them are lines that were appended at once
		t.Fatalf("control: %d lines: %s", len(control.lines), control.all)
	}
	plain := t.TempDir()
	cmd := exec.Command(bin, "-test.run", "^TestPlainFolder$/^fidelity$")
	cmd.Env = append(os.Environ(), "CARREL_TEST_FOLDER="+plain)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in a folder of the host's: %v\n%s", err, out)
	}
	left := look(t, filepath.Join(plain, "fidelity"))
	for _, s := range []struct{ kind, dir, host string }{{"virtiofs", "/s/rw", f.rw}, {"fuse", "/s/cases", streamed}} {
		t.Run(s.kind, func(t *testing.T) {
			p := run(t, s.dir, s.kind)
			for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
				want := casesDiffer[name].how
				if want == "" {
					want = "pass"
				}
				if how := p.ended[name]; how == "" || !strings.Contains(want, how) {
					t.Errorf("%s ended with %q, not %s", name, how, want)
				}
			}
			for n := range max(len(p.lines), len(control.lines)) {
				if a, b := lineOf(control, n), lineOf(p, n); a != b {
					t.Errorf("line %d\nin a tmpfs:   %.2000s\nin the share: %.2000s", n, a, b)
					break
				}
			}
			if got := look(t, filepath.Join(s.host, "cases/fidelity")); got != left {
				t.Errorf("in a plain folder there is\n%.4000s\nand here\n%.4000s", left, got)
			}
			if t.Failed() {
				t.Logf("%.20000s", p.all)
			}
		})
	}
}

func lineOf(p told, n int) string {
	if n < len(p.lines) {
		return p.lines[n]
	}
	return ""
}
