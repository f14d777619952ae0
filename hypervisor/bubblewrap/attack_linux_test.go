package bubblewrap

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// folders are the shares of the guest that the attacks run in.
type folders struct {
	tools, ro, rw, overlay string
	canary                 string // beside them, not shared
}

// TestWall attacks the wall from inside, as the guest's user and, where there
// is one, as its root.
func TestWall(t *testing.T) {
	work := t.TempDir()
	f := folders{canary: filepath.Join(work, "canary")}
	cfg := config(t)
	var pins []Pin
	for _, d := range []struct {
		path *string
		name string
		s    hypervisor.Share
	}{
		{&f.tools, "tools", hypervisor.Share{ReadOnly: true}}, {&f.ro, "ro", hypervisor.Share{ReadOnly: true}},
		{&f.rw, "rw", hypervisor.Share{}}, {&f.overlay, "overlay", hypervisor.Share{ReadOnly: true, Overlay: true}},
	} {
		*d.path = filepath.Join(work, d.name)
		if err := os.Mkdir(*d.path, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(*d.path, "file"), d.name)
		d.s.Path, d.s.GuestPath = *d.path, "/shares/"+d.name
		pins = append(pins, share(t, &cfg, d.s))
	}
	write(t, f.canary, "the host's own")
	install(t, hypervisortest.Program(t, "github.com/carrel-vm/carrel/hypervisor/bubblewrap/testdata/attack"), f.tools)
	g := start(t, cfg, pins...)
	t.Logf("%q", g.d.Notes())

	part := func(name string, test func(*testing.T, *guest, folders)) {
		t.Run(name, func(t *testing.T) {
			sub := *g
			sub.t = t
			test(t, &sub, f)
			if out := sub.sh("echo alive"); out != "alive" {
				t.Errorf("the guest does not answer any more: %q", out)
			}
		})
	}
	part("Shares", sharesWork)
	part("ReadOnlyShare", readOnlyShare)
	part("NoSetuid", noSetuid)
	part("LinksStayInside", linksStayInside)
	part("Calls", deniedCalls)
	part("AgentOutOfReach", agentOutOfReach)
	part("HostOutOfSight", hostOutOfSight)
	part("Network", noNetwork)
	part("Settings", settingsOfTheHost)
	part("Terminal", terminal)
	part("Fuse", fuse)
	part("Shared", sharedWithHost)
	part("Sockets", socketsOfShares)
	part("RootReplaced", rootReplaced) // last: a share is gone afterwards
}

// users are whom an attack runs as.
func users() []string {
	if wall.AsRoot() {
		return []string{"", "root"}
	}
	return []string{""} // the guest has no other
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tries runs the attack program and returns what each try got.
func (g *guest) tries(user string, args ...string) map[string]string {
	g.t.Helper()
	out, status := g.exec(user, append([]string{"/shares/tools/attack"}, args...)...)
	if status != 0 {
		g.t.Fatalf("attack %q: status %d: %s", args, status, out)
	}
	got := map[string]string{}
	for line := range strings.Lines(out) {
		name, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name] = what
	}
	return got
}

// sharesWork is the control of much that follows.
func sharesWork(t *testing.T, g *guest, f folders) {
	if out := g.sh("cat /shares/ro/file /shares/rw/file /shares/overlay/file; stat -c %u:%g /shares/rw/file"); out != "rorwoverlay1000:1000" {
		t.Errorf("the shares read as %q", out)
	}
	if out := g.sh("echo new >/shares/rw/made && echo mine >/shares/overlay/file && rm /shares/rw/made2 2>/dev/null; cat /shares/overlay/file"); out != "mine" {
		t.Errorf("wrote: %q", out)
	}
	b, err := os.ReadFile(filepath.Join(f.rw, "made"))
	if err != nil || string(b) != "new\n" {
		t.Errorf("what the guest wrote to a shared folder: %q, %v", b, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(f.rw, "made"), &st); err != nil || int(st.Uid) != os.Geteuid() {
		t.Errorf("it belongs to user %d, the folder to %d: %v", st.Uid, os.Geteuid(), err)
	}
	if b, err := os.ReadFile(filepath.Join(f.overlay, "file")); err != nil || string(b) != "overlay" {
		t.Errorf("a change in an overlay reached the host: %q, %v", b, err)
	}
}

// readOnlyShare is S01.
func readOnlyShare(t *testing.T, g *guest, f folders) {
	for _, user := range users() {
		for name, what := range g.tries(user, "mounts", "/shares/ro") {
			if what == "ok" {
				t.Errorf("user %q: %s", user, name)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(f.ro, "written")); err == nil {
		t.Error("a read-only share was written to")
	}
}

// noSetuid is S04 and S07.
func noSetuid(t *testing.T, g *guest, f folders) {
	for _, user := range users() {
		dir := "try" + user
		if err := os.Mkdir(filepath.Join(f.rw, dir), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(f.rw, dir), 0o777); err != nil {
			t.Fatal(err)
		}
		for name, what := range g.tries(user, "setuid", "/shares/rw/"+dir) {
			switch {
			case strings.HasPrefix(name, "openat2") || strings.HasPrefix(name, "fchmodat2") && what == "ENOSYS":
				if what != "ENOSYS" {
					t.Errorf("user %q: %s: %s", user, name, what)
				}
			case strings.HasSuffix(name, "-755") || name == "mknod-fifo":
				// As the guest's root, a folder of another user's is no control.
				if what != "ok" && user == "" {
					t.Errorf("control: user %q: %s: %s", user, name, what)
				}
			case what == "ok":
				t.Errorf("user %q: %s", user, name)
			}
		}
	}
	err := filepath.Walk(f.rw, func(path string, fi os.FileInfo, err error) error {
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
}

// linksStayInside is S05.
func linksStayInside(t *testing.T, g *guest, f folders) {
	out := g.sh("cd /shares/rw && ln -s ../canary up && ln -s " + f.canary + " abs && ln -s file inner && cat inner; cat up abs; echo over >up; echo over >abs; cat ../../../../../../../../" + f.canary)
	if !strings.HasPrefix(out, "rw") {
		t.Errorf("control: a link inside the share: %q", out)
	}
	if strings.Contains(out, "the host's own") {
		t.Errorf("a file beside the share was read: %q", out)
	}
	if b, err := os.ReadFile(f.canary); err != nil || string(b) != "the host's own" {
		t.Errorf("a file beside the share was written: %q, %v", b, err)
	}
}

// deniedCalls tries what the filters, the namespaces and missing capabilities
// refuse.
func deniedCalls(t *testing.T, g *guest, _ folders) {
	want := map[string]string{"getpid": "ok", "socket-unix": "ok", "socket-inet": "ok", "io_uring_setup": "ENOSYS", "openat2": "ENOSYS"}
	for _, user := range users() {
		got := g.tries(user, "calls")
		if len(got) < 25 {
			t.Fatalf("only %d tries: %v", len(got), got)
		}
		for name, what := range got {
			if want[name] != "" && what != want[name] || want[name] == "" && what == "ok" {
				t.Errorf("user %q: %s: %s", user, name, what)
			}
		}
	}
}

// agentOutOfReach is P11.
func agentOutOfReach(t *testing.T, g *guest, _ folders) {
	for _, user := range users() {
		out, _ := g.exec(user, "/bin/sh", "-c", `for s in KILL STOP TERM HUP INT QUIT SEGV ABRT USR1 ALRM BUS FPE ILL TRAP SYS; do kill -$s 1; done 2>/dev/null
head -c 1 /proc/1/mem && echo memory; ls /proc/1/fd && echo files; cat /proc/1/environ && echo environment; ls /proc/1/root/ && echo root
echo x >/proc/1/oom_score_adj && echo oom; (echo x >/proc/1/exe) && echo program; kill -0 $$ && echo control`)
		for _, word := range []string{"memory", "oom", "program", "files"} {
			if strings.Contains("\n"+out, "\n"+word+"\n") && (user == "" || word != "files") {
				t.Errorf("user %q reached the agent's %s: %q", user, word, out)
			}
		}
		if !strings.Contains(out, "control") {
			t.Errorf("control: %q", out)
		}
	}
	if wall.AsRoot() {
		if out := g.sh("kill -0 1 2>&1"); !strings.Contains(out, "ermitted") {
			t.Errorf("a task may signal the agent: %q", out)
		}
	}
	if out := g.sh("ls -l /proc/self/fd | wc -l"); out != "5" { // total, 0, 1, 2 and the listing's own
		t.Errorf("a task has other files than its three: %s", g.sh("ls -l /proc/self/fd"))
	}
}

// hostOutOfSight looks for the host's processes, users, files and sockets.
func hostOutOfSight(t *testing.T, g *guest, f folders) {
	if n := g.sh("ls -d /proc/[0-9]* | wc -l"); len(n) > 1 {
		t.Errorf("%s processes are seen", n)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if out := g.sh("hostname; cat /etc/hostname"); strings.Contains(out, host) || !strings.Contains(out, "wall") {
		t.Errorf("the host's name: %q", out)
	}
	for _, user := range users() {
		out, _ := g.exec(user, "/bin/sh", "-c", "ls -d /home/* /root/.??* /var/run/* /run/* "+f.canary+" 2>/dev/null; cat /etc/shadow /etc/ssh/* 2>/dev/null; find / -xdev -maxdepth 3 -name '*.sock' 2>/dev/null")
		for line := range strings.Lines(out) {
			if l := strings.TrimSpace(line); l != "/home/carrel" && l != "/run/carrel" {
				t.Errorf("user %q sees %q", user, l)
			}
		}
		for _, file := range []string{"kcore", "keys", "kallsyms", "kmsg", "timer_list", "sysrq-trigger", "interrupts", "slabinfo", "modules", "config.gz"} {
			if out, _ := g.exec(user, "/bin/sh", "-c", "head -c 100 /proc/"+file+" 2>/dev/null"); out != "" {
				t.Errorf("user %q reads /proc/%s: %q", user, file, out)
			}
		}
	}
	// A descendant's environment shows what was handed down.
	if out := g.sh("env; cat /proc/self/environ | tr '\\0' '\\n'"); strings.Contains(out, "CARREL_TEST") || strings.Contains(out, "TMPDIR") {
		t.Errorf("the host's environment: %q", out)
	}
}

// noNetwork dials the host in each way that there is.
func noNetwork(t *testing.T, g *guest, _ folders) {
	name := fmt.Sprintf("@carrel-test-%d", os.Getpid())
	abstract, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	path := filepath.Join(t.TempDir(), "s")
	file, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for _, l := range []net.Listener{abstract, file, tcp} { // the control
		c, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	begun := time.Now()
	got := g.tries("", "connect", "unix", name, "unix", path, "tcp", tcp.Addr().String(), "tcp", "192.0.2.1:443", "tcp", "[2001:db8::1]:443", "udp", "192.0.2.1:53")
	for what, result := range got {
		if result == "ok" {
			t.Errorf("%s can be reached", what)
		}
	}
	if took := time.Since(begun); len(got) != 6 || strings.Contains(fmt.Sprint(got), "timeout") { // each at once, however slow that is
		t.Errorf("%d refusals in %v: %v", len(got), took, got)
	}
	if out := g.sh("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '"); out != "lo" {
		t.Errorf("network devices: %q", out)
	}
}

// settingsOfTheHost tries to change what all of the machine has in common.
func settingsOfTheHost(t *testing.T, g *guest, _ folders) {
	for _, user := range users() {
		out, _ := g.exec(user, "/bin/sh", "-c", `for f in kernel/core_pattern kernel/modprobe vm/overcommit_memory vm/drop_caches fs/suid_dumpable kernel/sysrq kernel/randomize_va_space user/max_user_namespaces; do
	v=$(cat /proc/sys/$f 2>/dev/null); (echo "${v:-1}" >/proc/sys/$f) 2>/dev/null && echo "$f"; done; (echo c >/proc/sysrq-trigger) 2>/dev/null && cat /proc/sysrq-trigger; echo end`)
		if out != "end\n" {
			t.Errorf("user %q changes %q", user, out)
		}
	}
}

// terminal: a task's terminal is the guest's own.
func terminal(t *testing.T, g *guest, _ folders) {
	fuse := ""
	if wall.FuseError() == nil {
		fuse = "fuse "
	}
	if out := g.sh("ls /dev/pts; ls /dev | sort | tr '\\n' ' '"); out != "ptmx\nfd full "+fuse+"mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero" {
		t.Errorf("devices: %q", out)
	}
	if out := g.sh("script -qc 'tty' /dev/null </dev/null 2>/dev/null | tr -d '\\r'"); out != "" && !strings.HasPrefix(out, "/dev/pts/") {
		t.Errorf("a terminal of the guest: %q", out)
	}
}

// fuse: the device by which the agent has shares is of no use to a task. As
// root's guest it is another user's; and mounting takes a right that no task has.
func fuse(t *testing.T, g *guest, _ folders) {
	if wall.FuseError() != nil {
		t.Skipf("this user has no FUSE: %v", wall.FuseError())
	}
	if out, _ := g.exec("", "/bin/sh", "-c", "exec 3<>/dev/fuse && echo opened"); wall.AsRoot() && strings.Contains(out, "opened") {
		t.Errorf("a task opens the device: %q", out)
	}
	for _, user := range users() {
		const try = "exec 3<>/dev/fuse; mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 x /tmp && echo mounted; mount -t tmpfs x /tmp && echo mounted"
		if out, _ := g.exec(user, "/bin/sh", "-c", try); strings.Contains(out, "mounted") {
			t.Errorf("user %q: %q", user, out)
		}
	}
}

// rootReplaced is S19: while it runs, the guest has the folder that it was
// given, whatever stands at its path.
func rootReplaced(t *testing.T, g *guest, f folders) {
	if err := os.Rename(f.ro, f.ro+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.ro, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(f.ro, "file"), "another")
	if out := g.sh("cat /shares/ro/file"); out != "ro" {
		t.Errorf("the guest reads %q", out)
	}
}

// TestPinHolds: a share's folder that was replaced before the start stops it.
func TestPinHolds(t *testing.T) {
	for _, how := range []string{"folder", "link", "same"} {
		dir := filepath.Join(t.TempDir(), "shared")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cfg := config(t)
		pin := share(t, &cfg, hypervisor.Share{Path: dir, ReadOnly: true})
		d := newDriver(t, hypervisortest.Guest(t))
		d.opts.Pins = []Pin{pin}
		if how != "same" {
			if err := os.Rename(dir, dir+".old"); err != nil {
				t.Fatal(err)
			}
		}
		switch how {
		case "folder":
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		case "link": // to the very folder
			if err := os.Symlink(dir+".old", dir); err != nil {
				t.Fatal(err)
			}
		}
		vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{})
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Start(t.Context()); (err == nil) != (how == "same") {
			t.Errorf("%s: %v", how, err)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestForkBomb is R01: there is an end to processes, and the guest stops at once.
func TestForkBomb(t *testing.T) {
	tools := t.TempDir()
	install(t, hypervisortest.Program(t, "github.com/carrel-vm/carrel/hypervisor/bubblewrap/testdata/attack"), tools)
	cfg := config(t)
	pin := share(t, &cfg, hypervisor.Share{Path: tools, GuestPath: "/shares/tools", ReadOnly: true})
	g := startWith(t, func(o *Options) { o.Pins, o.MaxProcesses = []Pin{pin}, 100 }, cfg)
	got := g.tries("", "forks")
	var n int
	if _, err := fmt.Sscan(got["forks"], &n); err != nil || n < 1 || n > 100 { // without a group of its own the threads of the same user count, too
		t.Errorf("%v processes in a guest that may have 100", got)
	}
	begun := time.Now()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("the guest took %v to end", time.Since(begun))
}

// TestMemory: a task that takes all memory ends; the guest does not.
func TestMemory(t *testing.T) {
	tools := t.TempDir()
	install(t, hypervisortest.Program(t, "github.com/carrel-vm/carrel/hypervisor/bubblewrap/testdata/attack"), tools)
	cfg := config(t)
	cfg.MemoryMiB = 256
	pin := share(t, &cfg, hypervisor.Share{Path: tools, GuestPath: "/shares/tools", ReadOnly: true})
	g := start(t, cfg, pin)
	if out, status := g.exec("", "/shares/tools/attack", "memory"); status == 0 {
		t.Errorf("64 GiB were there: %s", out)
	}
	if out := g.sh("echo alive"); out != "alive" {
		t.Errorf("the guest: %q", out)
	}
}
