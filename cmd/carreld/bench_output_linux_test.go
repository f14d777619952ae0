//go:build bench

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// output has a task write much, and compares that with what a pipe carries, and
// what ssh does to this very machine. Then nobody reads for a while.
func (b *bench) output(wall backendWall) {
	s := b.sshd()
	w, c, g, stop := b.oneGuest(wall)
	defer stop()
	args := []string{"head", "-c", fmt.Sprint(wall.output), "/dev/zero"}
	mb := float64(wall.output) / (1 << 20)
	x := b.rounds(max(b.n, 3),
		func() float64 {
			return mb / (b.written(wall.output, func(out io.Writer) float64 {
				return b.task(c, client.Task{Guest: g.Name, Args: args, Stdout: out})
			}) / 1000)
		},
		func() float64 {
			return mb / (b.written(wall.output, func(out io.Writer) float64 { return b.piped(exec.Command(args[0], args[1:]...), out) }) / 1000)
		},
		func() float64 {
			return mb / (b.written(wall.output, func(out io.Writer) float64 { return b.piped(s.command(args...), out) }) / 1000)
		})
	what := fmt.Sprintf("%.0f MiB of `head -c N /dev/zero`, ", mb)
	b.median(wall.name+"_output", "MiB/s", x[0], limit{}, what+"a task "+wall.how+", through the Go client to a reader that counts them, from the call to the task's status; all of it passes the keeper's file of the output")
	b.median(wall.name+"_output_pipe", "MiB/s", x[1], limit{}, what+"a process of the host, through a pipe to the same reader")
	b.median(wall.name+"_output_ssh", "MiB/s", x[2], limit{}, what+"`ssh localhost` ("+s.version+", its defaults), through a pipe to the same reader; a connection each")
	b.ratio(wall.name+"_output_over_pipe", wall.name+"_output_pipe", x[0], x[1], limit{}, "of one round each, in speed")
	b.ratio(wall.name+"_output_over_ssh", wall.name+"_output_ssh", x[0], x[2], limit{}, "of one round each, in speed")
	b.unread(w, c, g, wall)
}

// written counts what is written to f's writer, which must be n bytes.
func (b *bench) written(n int64, f func(io.Writer) float64) float64 {
	b.Helper()
	var got int64
	took := f(writerFunc(func(p []byte) (int, error) { got += int64(len(p)); return len(p), nil }))
	if got != n {
		b.Fatalf("%d bytes came, not %d", got, n)
	}
	return took
}

// piped runs a command whose output comes by a pipe, and returns its time in ms.
func (b *bench) piped(cmd *exec.Cmd, out io.Writer) float64 {
	b.Helper()
	var said bytes.Buffer
	cmd.Stderr = &said
	r, err := cmd.StdoutPipe()
	begin := time.Now()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{r}, make([]byte, 64<<10))
		if werr := cmd.Wait(); err == nil {
			err = werr
		}
	}
	if err != nil {
		b.Fatalf("%v: %v\n%s", cmd.Args, err, &said)
	}
	return ms(time.Since(begin))
}

// unread stops the reader of a task that writes as fast as it can, until the task
// stands still too, and adds what daemon and keeper hold more than before, at most.
func (b *bench) unread(w *world, c *client.Client, g *api.Guest, wall backendWall) {
	pids := map[string]int{"daemon": w.d.Process.Pid, "keeper": int(g.KeeperPid)}
	before := map[string]float64{}
	for name, pid := range pids {
		// The greatest resident memory counts from now on (proc(5), clear_refs).
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			b.Fatal(err)
		}
		before[name] = b.status(pid, "VmRSS:")
	}
	const size = guest.SpoolMax + 128<<20 // more than a keeper keeps of a task's output
	var kept int64
	stood, peaks := false, map[string]float64{}
	b.written(size, func(out io.Writer) float64 {
		return b.task(c, client.Task{Guest: g.Name, Args: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}, Stdout: writerFunc(func(p []byte) (int, error) {
			if !stood {
				stood, kept = true, b.standstill(w, g)
				for name, pid := range pids {
					peaks[name] = b.status(pid, "VmHWM:")
				}
			}
			return out.Write(p)
		})})
	})
	if kept < guest.SpoolMax*9/10 || kept > size-64<<20 {
		b.Fatalf("the task stood still with %d MiB on the disk: the reader did not hold it back", kept>>20)
	}
	for _, name := range []string{"daemon", "keeper"} {
		how := fmt.Sprintf("what the %s held more than before, at most, while nobody read a task's output %s: after its first bytes its reader stood still until the task, which writes %d MiB as fast as it can, did so too, with %d MiB of the guest's output on the disk; then all of it came", name, wall.how, int64(size)>>20, kept>>20)
		b.add(figure{Name: wall.name + "_unread_" + name, Value: max(0, peaks[name]-before[name]), Unit: "MB", N: 1, How: how}, limit{})
		b.add(figure{Name: wall.name + "_read_" + name, Value: max(0, b.status(pids[name], "VmHWM:")-before[name]), Unit: "MB", N: 1, How: "the same until the task's end, while all of it was read"}, limit{})
	}
}

// standstill waits until what is on the disk of the output of a guest's last task
// has not changed for a while, and returns its bytes.
func (b *bench) standstill(w *world, g *api.Guest) (kept int64) {
	since := time.Now()
	for late := since.Add(patience); time.Since(since) < 4*time.Second && time.Now().Before(late); <-time.After(200 * time.Millisecond) {
		var now int64
		tasks, err := os.ReadDir(filepath.Join(w.home, "state", "guests", g.Name, "tasks"))
		if err != nil || len(tasks) == 0 {
			b.Fatalf("%d tasks, %v", len(tasks), err)
		}
		last := slices.MaxFunc(tasks, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) }).Name() // their names have their times
		files, _ := filepath.Glob(filepath.Join(w.home, "state", "guests", g.Name, "tasks", last, "out.*"))
		for _, f := range files {
			if fi, err := os.Stat(f); err == nil {
				now += fi.Size()
			}
		}
		if now != kept {
			kept, since = now, time.Now()
		}
	}
	return kept
}

// status is a line of /proc/PID/status, in MB.
func (b *bench) status(pid int, key string) (mb float64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, key+" %f kB", &kb); n == 1 {
			return kb * 1024 / 1e6
		}
	}
	b.Fatalf("process %d has no %s", pid, key)
	return 0
}

// sshServer is an OpenSSH server of the benchmark's own, on loopback.
type sshServer struct {
	dir, port, user, version string
}

// sshd starts it, with keys, a file of settings and a port of its own; it dies with
// the benchmark. Nothing of the machine's own settings is read.
func (b *bench) sshd() *sshServer {
	b.Helper()
	for _, name := range []string{"sshd", "ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(name); err != nil {
			b.Fatalf("%s is not there, with which output is compared: apt-get install openssh-server (scripts/setup leaves it alone: its package starts a server on the network)", name)
		}
	}
	me, err := user.Current()
	if err != nil {
		b.Fatal(err)
	}
	s := &sshServer{dir: b.TempDir(), user: me.Username}
	program, _ := exec.LookPath("sshd") // by its whole name, or it does not start
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			b.Fatalf("ssh-keygen: %v %s", err, out)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	_, s.port, _ = net.SplitHostPort(ln.Addr().String())
	ln.Close() // sshd takes no listener; somebody else may be quicker, and then it says so
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // compiled in
			b.Fatal(err)
		}
	}
	settings := strings.Join([]string{"ListenAddress 127.0.0.1:" + s.port, "HostKey " + s.dir + "/host", "AuthorizedKeysFile " + s.dir + "/user.pub",
		"PidFile none", "UsePAM no", "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password",
		"AllowUsers " + s.user, "X11Forwarding no", "AllowTcpForwarding no", ""}, "\n")
	write(b.T, filepath.Join(s.dir, "sshd_config"), settings)
	public, err := os.ReadFile(filepath.Join(s.dir, "host.pub"))
	if err != nil {
		b.Fatal(err)
	}
	write(b.T, filepath.Join(s.dir, "known_hosts"), fmt.Sprintf("[127.0.0.1]:%s %s", s.port, public))
	var last []byte
	b.Cleanup(b.start(exec.Command(program, "-D", "-e", "-f", filepath.Join(s.dir, "sshd_config")), nil))
	defer func() {
		if b.Failed() {
			b.Logf("ssh: %v %s", err, last)
		}
	}()
	eventually(b.T, "sshd takes a command", func() bool {
		last, err = s.command("true").CombinedOutput()
		return err == nil
	})
	version, _ := exec.Command("ssh", "-V").CombinedOutput()
	s.version, _, _ = strings.Cut(strings.TrimSpace(string(version)), ",")
	return s
}

func (s *sshServer) command(args ...string) *exec.Cmd {
	return exec.Command("ssh", append([]string{"-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + s.dir + "/known_hosts",
		"-o", "IdentitiesOnly=yes", "-i", s.dir + "/user", "-p", s.port, "-l", s.user, "127.0.0.1"}, args...)...)
}
