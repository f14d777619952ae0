package bubblewrap

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/wall"
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
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, filepath.Base(self)), "-test.v", "-test.run=^Test(Conformance|Wall|PinHolds|ForkBomb|Memory|Image|NoFuse)$")
	if testing.Short() {
		cmd.Args = append(cmd.Args, "-test.short")
	}
	cmd.Dir = home
	cmd.Env = []string{"HOME=" + home, "TMPDIR=" + home, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", hypervisortest.Programs + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	out, err := cmd.CombinedOutput()
	if passed := bytes.Count(out, []byte("--- PASS: Test")); err != nil || passed < 5 {
		t.Errorf("as user %d: %v, %d tests passed\n%s", stranger, err, passed, out)
	}
}

// install copies a program to where everybody may run it.
func install(t *testing.T, program, dir string) {
	t.Helper()
	in, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, filepath.Base(program)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Chmod(0o755); err != nil {
		t.Fatal(err)
	}
}

// Where a user has no FUSE, a share with rules is refused with what mends it; it
// does not become a folder that is mounted as it is.
func TestNoFuse(t *testing.T) {
	dir := t.TempDir()
	for _, plain := range []bool{true, false} {
		cfg := config(t)
		pin := share(t, &cfg, hypervisor.Share{Path: dir})
		cfg.Shares[0].Plain = plain
		d := newDriver(t, hypervisortest.Agent(t))
		d.opts.Pins = []Pin{pin}
		s, err := d.spec(t.Context(), cfg)
		var he *hypervisor.Error
		switch {
		case plain && (err != nil || s.Shares[0].By != wall.ByBind):
			t.Errorf("control: %+v, %v", s.Shares, err)
		case !plain && wall.FuseError() == nil && (err != nil || s.Shares[0].By != wall.ByStream || !s.Fuse):
			t.Errorf("with FUSE: %+v, %v", s.Shares, err)
		case !plain && wall.FuseError() != nil && (!errors.As(err, &he) || !strings.Contains(he.Cure, "chmod 0666 /dev/fuse")):
			t.Errorf("without FUSE: %+v, %v", s.Shares, err)
		}
	}
}
