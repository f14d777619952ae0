package gvisor

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// stranger is a user of this machine who has no name, no right and no group.
const stranger = 54321

// TestUnprivileged runs this package's tests again as an ordinary user. Run by
// one, they are that already.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{self, hypervisortest.Agent(t), hypervisortest.Guest(t), hypervisortest.Program(t, "github.com/carrel-vm/carrel/hypervisor/bubblewrap/testdata/attack")} {
		install(t, p, dir)
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, filepath.Base(self)), "-test.v", "-test.run=^Test(Conformance|Shares|PinHolds|Refused)$")
	if testing.Short() {
		cmd.Args = append(cmd.Args, "-test.short")
	}
	cmd.Dir = home
	cmd.Env = []string{"HOME=" + home, "TMPDIR=" + home, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", hypervisortest.Programs + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	out, err := cmd.CombinedOutput()
	if passed := bytes.Count(out, []byte("--- PASS: Test")); err != nil || passed < 4 {
		t.Errorf("as user %d: %v, %d tests passed\n%s", stranger, err, passed, out)
	}
}
