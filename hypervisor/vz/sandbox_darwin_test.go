//go:build cgo

package vz

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/seatbelt"
)

// testInitrd names an initrd that is there already, to a process that can build none.
const testInitrd = "CARREL_TEST_INITRD"

func testProgram(t *testing.T) string {
	return hypervisortest.ProgramFor(t, runtime.GOARCH, "github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestprog")
}

// TestSandboxed is an experiment, by scripts/verify-host: do machines of the framework
// run in a process that Seatbelt holds, as a keeper could be held? It has this
// program begin within seatbelt's profile for that, and do what every driver
// promises. What the system refused meanwhile is in its log.
func TestSandboxed(t *testing.T) {
	if os.Getenv("CARREL_TEST_SANDBOX") == "" {
		t.Skip("an experiment of scripts/verify-host")
	}
	if os.Getenv(testInitrd) != "" {
		held(t)
		return
	}
	path := func(at string) string {
		t.Helper()
		at, err := seatbelt.KernelPath(at)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	said, err := exec.Command("getconf", "DARWIN_USER_CACHE_DIR").Output()
	if err != nil {
		t.Fatal(err)
	}
	kernel := path(hypervisortest.Kernel(t))
	p := seatbelt.Process{Program: path(os.Args[0]), Machine: true, Caches: path(strings.TrimSpace(string(said))), Read: []string{filepath.Dir(kernel)}, Write: []string{path(t.TempDir())}}
	dir := p.Write[0]
	b, err := os.ReadFile(hypervisortest.Initrd(t, testProgram(t)))
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, b, 0o600); err != nil {
		t.Fatal(err)
	}
	profile, err := p.Profile()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the profile:\n%s", profile)
	cmd := exec.Command("/usr/bin/sandbox-exec", "-p", profile, p.Program, "-test.v", "-test.timeout=10m", "-test.run=^(TestSandboxed|TestConformance)$/^(Life|Streams|Pause)$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), testInitrd+"="+initrd, "CARREL_TEST_KERNEL="+kernel, "TMPDIR="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		t.Errorf("it does not: %v", err)
	}
	t.Logf("what it said:\n%s", out.String())
	log, err := exec.Command("/usr/bin/log", "show", "--style", "compact", "--start", begun.Add(-time.Second).Format("2006-01-02 15:04:05"),
		"--predicate", `eventMessage CONTAINS "deny" AND (eventMessage CONTAINS "Sandbox" OR sender == "Sandbox")`).CombinedOutput()
	t.Logf("refused meanwhile (%v):", err)
	n := 0
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, filepath.Base(p.Program)) || strings.Contains(line, "Virtualization") {
			if n++; n <= 200 {
				t.Logf("refused: %.300s", strings.TrimSpace(line))
			}
		}
	}
	t.Logf("refused: %d lines", n)
}

// held tries what a process in the sandbox must not be able to do.
func held(t *testing.T) {
	if _, err := os.ReadDir("/Users"); !errors.Is(err, unix.EPERM) {
		t.Errorf("/Users can be listed: %v", err)
	}
	if err := os.WriteFile("/private/tmp/carrel-probe", nil, 0o600); !errors.Is(err, unix.EPERM) {
		t.Errorf("a file can be made in /private/tmp: %v", err)
	}
	if err := exec.Command("/usr/bin/true").Run(); !errors.Is(err, unix.EPERM) {
		t.Errorf("a program can be started: %v", err)
	}
	if _, err := net.Dial("tcp4", "127.0.0.1:9"); !errors.Is(err, unix.EPERM) {
		t.Errorf("a port of this host can be called: %v", err)
	}
}
