package qemu

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asProgram is what the test binary does when it is a program that a test
// started: as it is, or in the place of QEMU.
func asProgram(args []string) {
	switch args[0] {
	case "confine":
		fmt.Fprintln(os.Stderr, ConfineMain(args[1:]))
		os.Exit(125)
	case "attack":
		attack(args[1:])
		os.Exit(0)
	case "linger": // ends by a signal only
		fmt.Println("up")
		for {
			time.Sleep(time.Hour)
		}
	case "parent": // starts a confined program and prints its pid
		spec := testSpec(args[1])
		spec.Args = []string{"linger", "linger"}
		p, err := startProcess([]string{args[1], "confine"}, spec, nil)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(p.cmd.Process.Pid)
		time.Sleep(time.Hour)
	case "i386":
		i386()
		os.Exit(0)
	default:
		fakeProgram(args)
	}
}

// testSpec allows a statically linked program itself and nothing else.
func testSpec(program string) ConfineSpec {
	s, err := specFor(program)
	if err != nil {
		panic(err)
	}
	s.FileBytes = 1 << 20
	return s
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	exe, err = filepath.EvalSymlinks(exe)
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// makeArena builds one, with fresh files to spoil.
func makeArena(t *testing.T) (*arena, *os.File) {
	t.Helper()
	dir := t.TempDir()
	a := &arena{Dir: dir, Unix: dir + "/u.sock", Allowed: dir + "/allowed", Disk: dir + "/disk"}
	for _, name := range []string{"secret", "truncated", "removed", "renamed", "allowed", "disk"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("canary"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir+"/mnt", 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/mnt", unix.MNT_DETACH) }) // the control mounts
	for _, l := range []struct {
		network, address string
		to               *string
	}{{"unix", a.Unix, &a.Unix}, {"tcp", "127.0.0.1:0", &a.TCP}} {
		ln, err := net.Listen(l.network, l.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		*l.to = ln.Addr().String()
	}
	victim := exec.Command(self(t), "linger")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { victim.Process.Kill(); victim.Wait() })
	a.Victim = victim.Process.Pid
	leak, err := os.Open(dir + "/secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { leak.Close() })
	return a, leak
}

// TestConfined runs every attempt under the very spec with which QEMU runs,
// and once without it: what fails there too would prove nothing.
func TestConfined(t *testing.T) {
	run := func(confined bool) map[string]string {
		a, leak := makeArena(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		a.Leaked = 5
		arg, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		spec := testSpec(self(t))
		spec.Parent = os.Getpid()
		spec.ReadOnly = append(spec.ReadOnly, a.Allowed)
		spec.ReadWrite = append(spec.ReadWrite, a.Disk)
		spec.Args = []string{"qemu", "attack", string(arg)}
		spec.FDs = []int{4}
		f, err := specFile(spec)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := exec.Command(self(t), "confine")
		if !confined {
			cmd = exec.Command(self(t), spec.Args[1:]...)
			cmd.Env = append(os.Environ(), "HOME=/root")
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.ExtraFiles = []*os.File{f, w, leak}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("confined %t: %v\n%s", confined, err, &stderr)
		}
		got := map[string]string{}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("confined %t: %v\n%s", confined, err, &stderr)
		}
		return got
	}
	inside, outside := run(true), run(false)
	for _, m := range mustWork {
		if inside[m.name] != "" {
			t.Errorf("confined, it must be able to %s: %s", m.name, inside[m.name])
		}
	}
	for _, a := range attempts {
		why, tried := inside[a.name]
		if !tried || why == "" {
			t.Errorf("confined, it can %s", a.name)
		}
		control := outside[a.name]
		if control != "" && (!a.rootOnly || os.Geteuid() == 0) {
			t.Errorf("%s: fails without the confinement too (%s): no proof", a.name, control)
		}
		t.Logf("%-30s %s", a.name, why)
	}
}

// i386 asks for its pid as a program of 1986 would, and prints it.
func i386() {
	// mov eax, 20 (getpid); int 0x80; ret
	code := []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	copy(page, code)
	entry := &struct{ pc *byte }{&page[0]}
	(*(*func())(unsafe.Pointer(&entry)))()
	fmt.Println("survived")
}

// TestForeignCalls: the kernel's i386 entry has other numbers for its calls, so
// the first use of it must be a confined program's last act.
func TestForeignCalls(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Log("not applicable: only amd64 has such an entry")
		return
	}
	out, err := exec.Command(self(t), "i386").CombinedOutput()
	if string(out) != "survived\n" {
		t.Logf("not applicable: this kernel has no i386 entry: %v", err)
		return
	}
	spec := testSpec(self(t))
	spec.Args = []string{"qemu", "i386"}
	p, err := startProcess([]string{self(t), "confine"}, spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	if end := p.end("it"); !strings.Contains(end, "signal 31") {
		t.Errorf("%s: %s", end, p.words())
	}
}

// TestConfineRefuses: what cannot be confined as the spec says does not start.
func TestConfineRefuses(t *testing.T) {
	good := testSpec(self(t))
	good.Parent, good.Args = os.Getpid(), []string{"qemu", "linger"}
	encode := func(change func(*ConfineSpec)) string {
		s := good
		change(&s)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tc := range []struct {
		name, spec, want string
		args             []string
	}{
		{name: "control", spec: encode(func(*ConfineSpec) {})},
		{name: "no spec", spec: "", want: "read the spec"},
		{name: "garbage", spec: "{", want: "read the spec"},
		{name: "unknown field", spec: `{"Sockets": true}`, want: "unknown field"},
		{name: "two specs", spec: encode(func(*ConfineSpec) {}) + "{}", want: "after its end"},
		{name: "too large", spec: `{"Path":"` + strings.Repeat("x", specMax) + `"}`, want: "larger than"},
		{name: "no program", spec: encode(func(s *ConfineSpec) { s.Path = "" }), want: "names no program"},
		{name: "another parent", spec: encode(func(s *ConfineSpec) { s.Parent = 1 << 21 }), want: "die with the parent"},
		{name: "a missing file", spec: encode(func(s *ConfineSpec) { s.ReadOnly = []string{"/nowhere"} }), want: "Landlock"},
		{name: "a closed descriptor", spec: encode(func(s *ConfineSpec) { s.FDs = []int{77} }), want: "descriptor 77"},
		{name: "standard input", spec: encode(func(s *ConfineSpec) { s.FDs = []int{0} }), want: "not one to keep"},
		{name: "a program outside", spec: encode(func(s *ConfineSpec) { s.Path = "/bin/true" }), want: "execute /bin/true"},
		{name: "arguments", spec: encode(func(*ConfineSpec) {}), want: "takes none", args: []string{"x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "spec"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString(tc.spec); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Seek(0, 0); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self(t), append([]string{"confine"}, tc.args...)...)
			cmd.ExtraFiles = []*os.File{f}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, _ := bufio.NewReader(out).ReadString('\n') // its end, if it does not start
			if tc.want == "" {
				cmd.Process.Kill()
			}
			cmd.Wait()
			if up := line == "up\n"; up != (tc.want == "") || !strings.Contains(stderr.String(), tc.want) {
				t.Errorf("started %t; said %q, want %q", up, &stderr, tc.want)
			}
		})
	}
}

// TestDiesWithParent kills the process that started a confined one.
func TestDiesWithParent(t *testing.T) {
	parent := exec.Command(self(t), "parent", self(t))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the parent said %q", line)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// A signal, of which Go's scheduler sends one to whom a call takes long, ends poll.
	gone := func(limit time.Duration) bool {
		for end := time.Now().Add(limit); ; {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(end), 0).Milliseconds()))
			if err != unix.EINTR {
				return err == nil && n == 1
			}
		}
	}
	if gone(300 * time.Millisecond) {
		t.Fatal("the confined program ended by itself: no proof")
	}
	parent.Process.Signal(syscall.SIGKILL)
	parent.Wait()
	if !gone(patience) {
		unix.Kill(pid, unix.SIGKILL)
		t.Error("it outlived its parent")
	}
}
