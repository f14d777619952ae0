package gvisor

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// TestShares attacks the wall from inside, as the guest's user and its root.
func TestShares(t *testing.T) {
	work := t.TempDir()
	cfg := config(t)
	dirs := map[string]string{}
	var pins []wall.Pin
	for _, d := range []struct {
		name string
		s    hypervisor.Share
	}{
		{"tools", hypervisor.Share{ReadOnly: true}}, {"ro", hypervisor.Share{ReadOnly: true}},
		{"rw", hypervisor.Share{}}, {"overlay", hypervisor.Share{ReadOnly: true, Overlay: true}},
	} {
		path := filepath.Join(work, d.name)
		dirs[d.name] = path
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(path, "file"), d.name)
		d.s.Path, d.s.GuestPath = path, "/shares/"+d.name
		pins = append(pins, share(t, &cfg, d.s))
	}
	canary := filepath.Join(work, "canary")
	write(t, canary, "the host's own")
	install(t, hypervisortest.Program(t, "github.com/carrel-vm/carrel/hypervisor/bubblewrap/testdata/attack"), dirs["tools"])
	// A socket of the host in a folder that the guest has.
	l, err := net.Listen("unix", filepath.Join(dirs["rw"], "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := start(t, cfg, pins...)
	t.Logf("%q", g.d.Notes())
	me := "1000:1000"
	if !wall.AsRoot() {
		me = "0:0"
	}

	// The control of what follows.
	if out := g.sh("cat /shares/ro/file /shares/rw/file /shares/overlay/file; stat -c %u:%g /shares/rw/file"); out != "rorwoverlay"+me {
		t.Errorf("the shares read as %q", out)
	}
	if out := g.sh("echo new >/shares/rw/made && echo mine >/shares/overlay/file; cat /shares/overlay/file"); out != "mine" {
		t.Errorf("wrote: %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(dirs["rw"], "made")); err != nil || string(b) != "new\n" {
		t.Errorf("what the guest wrote to a shared folder: %q, %v", b, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dirs["rw"], "made"), &st); err != nil || int(st.Uid) != os.Geteuid() {
		t.Errorf("it belongs to user %d: %v", st.Uid, err)
	}
	if b, err := os.ReadFile(filepath.Join(dirs["overlay"], "file")); err != nil || string(b) != "overlay" {
		t.Errorf("a change in an overlay reached the host: %q, %v", b, err)
	}

	for _, user := range []string{"", "root"} {
		// S01
		out, _ := g.exec(user, "/shares/tools/attack", "mounts", "/shares/ro")
		if strings.Contains(out, "write ok") || strings.Contains(out, "mount ok") || strings.Contains(out, "bind ok") {
			t.Errorf("user %q: %s", user, out)
		}
		// S04 and S07: what counts is what is on the host.
		dir := filepath.Join(dirs["rw"], "try"+user)
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		out, _ = g.exec(user, "/shares/tools/attack", "setuid", "/shares/rw/try"+user)
		if user == "" && !strings.Contains(out, "chmod-755 ok") {
			t.Errorf("control: %s", out)
		}
		t.Logf("user %q: %s", user, strings.ReplaceAll(out, "\n", ", "))
		// Sockets of the host are not the guest's.
		if out, _ := g.exec(user, "/shares/tools/attack", "connect", "unix", "/shares/rw/sock"); strings.Contains(out, " ok") {
			t.Errorf("user %q dials a socket of the host in a share: %s", user, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dirs["ro"], "written")); err == nil {
		t.Error("a read-only share was written to")
	}
	err = filepath.Walk(dirs["rw"], func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if fi.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeDevice) != 0 {
			t.Errorf("%s has mode %v on the host", path, fi.Mode())
		}
		if n, _ := unix.Getxattr(path, "security.capability", nil); n > 0 {
			t.Errorf("%s has file capabilities on the host", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// S05
	out := g.sh("cd /shares/rw && ln -s ../canary up && ln -s " + canary + " abs && ln -s file inner && cat inner; cat up abs; echo over >up; echo over >abs")
	if !strings.HasPrefix(out, "rw") || strings.Contains(out, "the host's own") {
		t.Errorf("links: %q", out)
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "the host's own" {
		t.Errorf("a file beside the share was written: %q, %v", b, err)
	}
	// Nothing of the host's processes, name and kernel.
	if n := g.sh("ls -d /proc/[0-9]* | wc -l"); len(n) > 1 {
		t.Errorf("%s processes are seen", n)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if out := g.sh("hostname; cat /etc/hostname /proc/version"); strings.Contains(out, host) || !strings.Contains(out, "wall") {
		t.Errorf("the host's name: %q", out)
	}
}

// TestPinHolds replaces a folder between its grant and the start.
func TestPinHolds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "granted")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := config(t)
	pin := share(t, &cfg, hypervisor.Share{Path: dir, GuestPath: "/granted"})
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, hypervisortest.Agent(t))
	d.opts.Pins = []wall.Pin{pin}
	vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if err := vm.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("started with another folder: %v", err)
	}
}

// TestRefused asks for what this driver cannot do.
func TestRefused(t *testing.T) {
	cfg := config(t)
	cfg.Scratch = filepath.Join(cfg.Dir, "scratch.img")
	if vm, err := newDriver(t, hypervisortest.Agent(t)).Create(t.Context(), cfg, hypervisor.Handlers{}); err == nil {
		vm.Close()
		t.Error("a guest with a disk was created")
	}
}
