package egresstest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// insideEnv names the test that a copy of the test binary is to run.
	insideEnv = "CARREL_TEST_INSIDE"
	// initEnv makes a copy of the test binary PID 1 of its namespace.
	initEnv = "CARREL_TEST_INIT"
	// spare is what is left of the test's time for its last words.
	spare = 10 * time.Second
)

// Inside runs the calling test again in a copy of the test binary that has mount,
// network and process namespaces of its own, and says whether this is the copy:
//
//	if !egresstest.Inside(t) {
//		return
//	}
//
// When the copy ends, the kernel ends everything that it started. It works as
// root, and for others where user namespaces are allowed.
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.v=true", fmt.Sprintf("-test.short=%v", testing.Short())}
	if end, ok := t.Deadline(); ok {
		args = append(args, fmt.Sprintf("-test.timeout=%v", max(time.Until(end)-spare, time.Second)))
	}
	if only := os.Getenv("CARREL_TEST_ONLY"); only != "" {
		args[0] += "/" + only // one sub-test, for a person who looks for a fault
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(clean(os.Environ()), insideEnv+"="+t.Name(), initEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// Pdeathsig is told of the death of a thread, so this one has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	text := strings.TrimRight(out.String(), "\n")
	switch {
	case err != nil:
		t.Errorf("in its own namespaces (%v):\n%s\n(namespaces need root, or a kernel that lets users make them)", err, text)
	case !strings.Contains(text, "--- PASS: "+t.Name()):
		t.Errorf("the copy did not run the test:\n%s", text)
	default:
		t.Log("in its own namespaces:\n" + text)
	}
	return false
}

// clean drops the variables by which programs find proxies and certificates.
func clean(env []string) (kept []string) {
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		up := strings.ToUpper(name)
		if strings.HasSuffix(up, "_PROXY") && up != "GOPROXY" || strings.Contains(up, "CERT") || strings.Contains(up, "_CA_") || strings.HasSuffix(up, "CAINFO") {
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// init turns a copy of the test binary into the first process of its namespace:
// it has a /proc of its own, starts the test, and buries what others leave.
func init() {
	if os.Getenv(initEnv) == "" {
		return
	}
	os.Unsetenv(initEnv)
	die := func(what string, err error) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		die("make the mounts private", err)
	}
	self, err := os.Executable() // before /proc is another's
	if err != nil {
		die("find the test binary", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		die("mount /proc", err)
	}
	p, err := os.StartProcess(self, os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ()})
	if err != nil {
		die("start the test", err)
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			die("wait", err)
		}
		if pid == p.Pid {
			if ws.Exited() {
				os.Exit(ws.ExitStatus())
			}
			os.Exit(1)
		}
	}
}
