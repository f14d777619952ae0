package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

func TestHello(t *testing.T) {
	h := newHost(t)
	if h.hello.Version != wire.Version || h.hello.Kernel == "" || h.hello.UpNanos <= 0 || h.hello.InitNanos <= 0 {
		t.Fatalf("hello %v", h.hello)
	}
}

func TestExecStreamsAndCode(t *testing.T) {
	h := ready(t)
	s := h.sh("echo out; echo err >&2; exit 7")
	s.wantExit(7, 0)
	s.wantOut("out\n")
	if s.stderr.String() != "err\n" {
		t.Fatalf("stderr %q", s.stderr.Bytes())
	}
	s = h.sh("kill -9 $$")
	s.wantExit(0, 9)
	h.sh("true").wantExit(0, 0)
}

func TestExecFailures(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain := write("plain", "#!/bin/sh\n", 0o644)
	junk := write("junk", "neither\n", 0o755)
	loose := write("loose", "#!/nonexistent/interpreter\n", 0o755)
	good := write("good", "#!/bin/sh\necho good\n", 0o755)
	h := ready(t)
	for _, c := range []struct {
		name string
		e    *wire.Exec
		code int32
		in   string
	}{
		{"missing", &wire.Exec{Argv: []string{"no-such-command-here"}}, 127, "PATH"},
		{"missing path", &wire.Exec{Argv: []string{"/nonexistent/x"}}, 127, "does not exist"},
		{"missing interpreter", &wire.Exec{Argv: []string{loose}}, 127, "interpreter"},
		{"no permission", &wire.Exec{Argv: []string{plain}}, 126, "permission"},
		{"no permission in PATH", &wire.Exec{Argv: []string{"plain"}, Env: []string{"PATH=" + dir}}, 126, "permission"},
		{"folder", &wire.Exec{Argv: []string{dir}}, 126, "permission"},
		{"no program", &wire.Exec{Argv: []string{junk}}, 126, "script"},
		{"empty command", &wire.Exec{Argv: []string{""}}, 127, "empty"},
		{"no command", &wire.Exec{}, 125, "no command"},
		{"missing workdir", &wire.Exec{Argv: []string{good}, Cwd: "/nonexistent"}, 125, "workdir"},
		{"relative workdir", &wire.Exec{Argv: []string{good}, Cwd: "x"}, 125, "absolute"},
		{"no such user", &wire.Exec{Argv: []string{good}, User: "nobody-of-that-name"}, 125, "no user"},
		{"NUL in an argument", &wire.Exec{Argv: []string{good, "a\x00b"}}, 125, "NUL"},
		{"NUL in the workdir", &wire.Exec{Argv: []string{good}, Cwd: "/\x00"}, 125, "NUL"},
		{"NUL in a variable", &wire.Exec{Argv: []string{good}, Env: []string{"A=\x00"}}, 125, "NUL"},
		{"variable without a name", &wire.Exec{Argv: []string{good}, Env: []string{"=x"}}, 125, "NAME=value"},
		{"bad id", &wire.Exec{Argv: []string{good}, Id: "../x"}, 125, "task id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			s := h.exec(c.e)
			s.wait()
			if s.started || s.failed == nil || s.failed.Code != c.code || !strings.Contains(s.failed.Message, c.in) {
				t.Fatalf("%v %v, want code %d and %q", s.exit, s.failed, c.code, c.in)
			}
		})
	}
	h.t = t
	s := h.exec(&wire.Exec{Argv: []string{"good"}, Env: []string{"PATH=/nonexistent:" + dir}, Cwd: dir})
	s.wait()
	s.wantOut("good\n")
}

// TestExecArguments: arguments are passed as they are, whatever they look like.
func TestExecArguments(t *testing.T) {
	h := ready(t)
	args := []string{"--", "-rf", "a b", "line\nbreak", "$(id)", "`id`", "é\xff", "", strings.Repeat("x", 100_000)}
	s := h.exec(&wire.Exec{Argv: append([]string{"/usr/bin/printf", "%s|"}, args[:6]...)})
	s.wait()
	s.wantOut(strings.Join(args[:6], "|") + "|")
	s = h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", `printf %s "${#1}"`, "sh", args[8]}})
	s.wait()
	s.wantOut("100000")
}

func TestExecEnvironment(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/usr/bin/env"}, Env: []string{"A=1", "B=x=y", "A=2", "LANG=xx"}, Id: "id7"})
	s.wait()
	got := "\n" + s.stdout.String()
	for _, want := range []string{"A=2", "B=x=y", "LANG=xx", "PATH=" + defaultPath, "CARREL_TASK=id7"} {
		if !strings.Contains(got, "\n"+want+"\n") {
			t.Errorf("%s is missing in %q", want, got)
		}
	}
	for _, not := range []string{"\nA=1\n", "\nGOMAXPROCS", "\nTERM="} {
		if strings.Contains(got, not) {
			t.Errorf("%q is in %q", not, got)
		}
	}
}

// TestExecInheritsNothing: of the agent's files the task gets its three, and
// of its settings none.
func TestExecInheritsNothing(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "umask; ulimit -c; echo up; read x"}, Stdin: true})
	s.until("up\n")
	s.wantOut("0022\n0\nup\n")
	fds, err := os.ReadDir("/proc/" + strconv.Itoa(s.pid) + "/fd")
	if err != nil || len(fds) != 3 {
		t.Fatalf("files %v, %v, want 0, 1 and 2", fds, err)
	}
	own, _ := os.ReadDir("/proc/self/fd")
	if len(own) < 8 {
		t.Fatalf("control: the agent holds only %d files", len(own))
	}
	s.closeStdin()
	s.wait()
}

func TestExecUser(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "id -u; id -g; grep -h -e NoNewPrivs -e CapEff -e Seccomp: /proc/self/status | tr -s '\\t' ' '; echo reopened >/dev/stderr"}, User: "1000", Cwd: "/"})
	s.wait()
	if os.Geteuid() != 0 && os.Geteuid() != 1000 {
		if s.failed == nil || !strings.Contains(s.failed.Message, "not root") {
			t.Fatalf("another user without being root: %v %v", s.exit, s.failed)
		}
		return
	}
	s.wantExit(0, 0)
	if got := s.stdout.String(); !strings.HasPrefix(got, "1000\n") || !strings.HasSuffix(got, "CapEff: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n") {
		t.Fatalf("stdout %q", got)
	}
	if s.stderr.String() != "reopened\n" {
		t.Fatalf("stderr %q", s.stderr.Bytes())
	}
	if os.Geteuid() == 0 {
		s = h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "id -u; grep -h NoNewPrivs /proc/self/status"}, User: "root"})
		s.wait()
		s.wantOut("0\nNoNewPrivs:\t0\n")
	}
}

// TestPlantedShell (P14): what stands in a task's PATH under the name of a tool
// runs as the task's user and no other.
func TestPlantedShell(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "planted")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// The task's user must be able to enter it.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"sh", "id", "test", "stat"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\necho planted as $(/usr/bin/id -u)\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	user := strconv.Itoa(os.Geteuid())
	if user == "0" {
		user = "1000"
	}
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"sh"}, Env: []string{"PATH=" + dir}, User: user, Cwd: dir})
	s.wait()
	s.wantOut("planted as " + user + "\n")
	// Control: without the plant in PATH the real one runs.
	s = h.exec(&wire.Exec{Argv: []string{"sh", "-c", "echo real"}, User: user, Cwd: dir})
	s.wait()
	s.wantOut("real\n")
}

func TestExecRlimits(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "ulimit -n; ulimit -Hn"}, Limits: &wire.Limits{OpenFiles: 123}})
	s.wait()
	s.wantOut("123\n123\n")
	file := filepath.Join(t.TempDir(), "f")
	run := func(l *wire.Limits) *session {
		s := h.exec(&wire.Exec{Argv: []string{"/bin/dd", "if=/dev/zero", "of=" + file, "bs=1000", "count=3"}, Limits: l})
		s.wait()
		return s
	}
	run(&wire.Limits{FileBytes: 1000}).wantExit(0, int32(unix.SIGXFSZ))
	run(nil).wantExit(0, 0)
}

// TestExecSeccomp: no task reaches a vsock or io_uring; the same program
// without the filter does, where the kernel has them.
func TestExecSeccomp(t *testing.T) {
	h := ready(t)
	const script = `
import ctypes, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, f):
    try:
        r = f()
    except OSError as e:
        print(name, e.errno)
    else:
        print(name, "ok")
call("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
call("inet", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
call("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
r = libc.syscall(425, 1, None)
print("uring", r, ctypes.get_errno())
`
	s := h.exec(&wire.Exec{Argv: []string{"/usr/bin/python3", "-c", script}})
	s.wait()
	s.wantOut("vsock " + strconv.Itoa(int(unix.EAFNOSUPPORT)) + "\ninet ok\nunix ok\nuring -1 " + strconv.Itoa(int(unix.ENOSYS)) + "\n")
	// Control: this process has no filter and its kernel knows io_uring_setup,
	// which refuses a nil argument with another error.
	if _, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0); e != unix.EFAULT && e != unix.EPERM {
		t.Logf("this kernel answers io_uring_setup with %v, so the case shows less here", e)
	}
}

func TestSignals(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "trap 'echo got; exit 3' USR1; echo up; while :; do sleep 0.05; done"}})
	s.until("up\n")
	s.signal(int32(unix.SIGUSR1))
	s.wait()
	s.wantExit(3, 0)
	s.wantOut("up\ngot\n")

	s = h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "echo up; exec sleep 100"}})
	s.until("up\n")
	s.signal(0)
	s.signal(65)
	s.signal(-1)
	s.signal(int32(unix.SIGTERM))
	s.wait()
	s.wantExit(0, int32(unix.SIGTERM))
}

func TestStdin(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/usr/bin/wc", "-c"}, Stdin: true})
	s.stdin("hello ")
	s.stdin("world")
	s.closeStdin()
	s.wait()
	s.wantOut("11\n")
	if s.taken != 11 {
		t.Fatalf("%d bytes given back, want 11", s.taken)
	}
	// Without stdin the task reads nothing, at once.
	s = h.exec(&wire.Exec{Argv: []string{"/usr/bin/wc", "-c"}})
	s.wait()
	s.wantOut("0\n")
	// Half-close: output goes on after the end of input.
	s = h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "cat; echo after"}, Stdin: true})
	s.stdin("x")
	s.closeStdin()
	s.wait()
	s.wantOut("xafter\n")
}

// TestStdinWindow: a task that does not read its stdin holds up no signal, and
// a host that sends more than the window loses its task.
func TestStdinWindow(t *testing.T) {
	h := ready(t)
	chunk := strings.Repeat("x", wire.DataChunk)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"}, Stdin: true})
	s.until("up\n")
	for range wire.StdinWindow / wire.DataChunk {
		s.stdin(chunk)
	}
	s.signal(int32(unix.SIGTERM))
	s.wait()
	s.wantExit(5, 0)

	s = h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "echo up; exec sleep 100"}, Stdin: true})
	s.until("up\n")
	for range 2*wire.StdinWindow/wire.DataChunk + 1 {
		if wire.Write(s.conn, &wire.Input{Kind: &wire.Input_Stdin{Stdin: []byte(chunk)}}) != nil {
			break
		}
	}
	s.wait()
	s.wantExit(0, 9)
}

func TestTerminal(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "tty >/dev/null && stty size; echo $TERM; trap 'stty size; exit 4' WINCH; echo up; while :; do sleep 0.05; done"}, Tty: true, Rows: 30, Cols: 90, Stdin: true})
	s.until("30 90\r\nxterm-256color\r\nup\r\n")
	s.send(&wire.Input{Kind: &wire.Input_Resize{Resize: &wire.Resize{Rows: 41, Cols: 101}}})
	s.wait()
	s.wantExit(4, 0)
	s.wantOut("30 90\r\nxterm-256color\r\nup\r\n41 101\r\n")

	// Ctrl-C as a terminal has it, and Ctrl-D at the end of stdin.
	s = h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "trap 'echo int; exit 6' INT; echo up; while :; do sleep 0.05; done"}, Tty: true, Stdin: true})
	s.until("up\r\n")
	s.stdin("\x03")
	s.wait()
	s.wantExit(6, 0)
	s = h.exec(&wire.Exec{Argv: []string{"/bin/cat"}, Tty: true, Stdin: true})
	s.stdin("line\n")
	s.until("line\r\nline\r\n")
	s.closeStdin()
	s.wait()
	s.wantExit(0, 0)
}

// alive says whether a process whose command line holds mark runs.
func alive(mark string) bool {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if b, _ := os.ReadFile(d + "/cmdline"); bytes.Contains(b, []byte(mark)) {
			return true
		}
	}
	return false
}

// gone waits until no process holds mark.
func gone(t *testing.T, mark string) {
	t.Helper()
	for end := time.Now().Add(patience); alive(mark); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a process of %s is left", mark)
		}
	}
}

// TestDisconnect: when the host goes, so does all of the task, also what left
// its process group and session.
func TestDisconnect(t *testing.T) {
	h := ready(t)
	const mark = "7654.321"
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "sleep " + mark + " & setsid sleep " + mark + " & echo up; wait"}})
	s.until("up\n")
	if !alive(mark) {
		t.Fatal("control: the task's processes do not run")
	}
	_ = s.conn.Close()
	gone(t, mark)
}

// TestDescendants: when the command ends, so do its descendants, their output
// up to then is kept, and the agent reaps them.
func TestDescendants(t *testing.T) {
	h := ready(t)
	const mark = "8765.432"
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "setsid sh -c 'echo child; exec sleep " + mark + "' & read x; echo parent; exit 2"}, Stdin: true})
	s.until("child\n")
	s.stdin("go\n")
	s.wait() // or the connection's time is over first: the sleep's, which has the output open, is longer
	s.wantExit(2, 0)
	s.wantOut("child\nparent\n")
	gone(t, mark)
	orphans := func() (n int) {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, f := range stats {
			b, _ := os.ReadFile(f)
			if i := bytes.LastIndexByte(b, ')'); i > 0 && strings.HasPrefix(string(b[i:]), ") Z "+strconv.Itoa(os.Getpid())+" ") {
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(patience); orphans() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d zombies are left", orphans())
		}
	}
}

// TestFlood: a task that writes without end to a host that does not read is
// stopped by its pipe, and the agent's memory does not grow.
func TestFlood(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "echo up; exec cat /dev/zero"}})
	s.until("up\n")
	before := peak(t)
	// Give it a second to do harm while nobody reads; another call works.
	end := time.Now().Add(time.Second)
	for time.Now().Before(end) {
		h.sh("true").wantExit(0, 0)
	}
	if grown := peak(t) - before; grown > 64<<10 {
		t.Fatalf("the agent grew by %d KiB", grown)
	}
	// Control: what is read then is the flood itself.
	for s.stdout.Len() < 8<<20 {
		if !s.next() {
			t.Fatal("the flood ended")
		}
	}
	s.signal(int32(unix.SIGKILL))
	s.wait()
	s.wantExit(0, 9)
}

// peak is this process's largest resident size so far, in KiB.
func peak(t *testing.T) int64 {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return u.Maxrss
}

func TestLargeOutput(t *testing.T) {
	h := ready(t)
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "head -c 20000000 /dev/zero; head -c 3000000 /dev/zero >&2"}})
	s.wait()
	s.wantExit(0, 0)
	if s.stdout.Len() != 20000000 || s.stderr.Len() != 3000000 {
		t.Fatalf("%d and %d bytes came", s.stdout.Len(), s.stderr.Len())
	}
}
