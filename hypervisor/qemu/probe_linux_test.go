package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

// fakeProgram is the test binary in the place of QEMU: it does what the content
// of the kernel file says.
func fakeProgram(args []string) {
	if args[0] == "--version" {
		v := "7.2.22"
		if strings.HasSuffix(os.Args[0], "old") {
			v = "6.2.0"
		}
		if strings.HasSuffix(os.Args[0], "slow") {
			time.Sleep(6 * time.Second)
		}
		fmt.Printf("QEMU emulator version %s (fake)\n", v)
		os.Exit(0)
	}
	all := strings.Join(args, " ")
	var fd int
	if m := regexp.MustCompile(`id=console,fd=([0-9]+)`).FindStringSubmatch(all); m != nil {
		fd, _ = strconv.Atoi(m[1])
	}
	console := os.NewFile(uintptr(fd), "console")
	for i, a := range args {
		if a != "-kernel" {
			continue
		}
		b, err := os.ReadFile(args[i+1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		switch string(b) {
		case "boots":
			fmt.Fprintln(console, ProbeMark)
		case "boots and hangs":
			fmt.Fprintln(console, ProbeMark)
			time.Sleep(time.Hour)
		case "hangs":
			time.Sleep(time.Hour)
		case "aborts":
			fmt.Fprintln(os.Stderr, "failed to set \x1b[31mMSR")
			os.Exit(1)
		case "floods":
			for {
				if _, err := fmt.Fprintln(console, strings.Repeat("x", 1000)); err != nil {
					os.Exit(0)
				}
			}
		case "quits":
			fmt.Fprintln(console, "some\x07thing")
		}
	}
	os.Exit(0)
}

// probeInput is one whose kernel makes the fake QEMU behave.
func probeInput(t *testing.T, behaviour string) ProbeInput {
	t.Helper()
	dir := t.TempDir()
	in := ProbeInput{QEMU: self(t), Shim: []string{self(t), "confine"}, Kernel: dir + "/kernel", Initrd: dir + "/initrd", CacheDir: dir + "/cache"}
	for _, f := range []string{in.Kernel, in.Initrd} {
		if err := os.WriteFile(f, []byte(behaviour), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

func TestTrialBoot(t *testing.T) {
	for behaviour, want := range map[string]string{
		"boots":           "",
		"boots and hangs": "", // the mark counts, not the end
		"hangs":           "did not boot within",
		"floods":          "did not boot within",
		"aborts":          `failed to set \x1b[31mMSR`,
		"quits":           `its console: some\x07thing`,
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			limit := patience
			if want == "did not boot within" {
				limit = 3 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			err := trialBoot(ctx, probeInput(t, behaviour), MinVersion, TCG)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// TestProbeRemembers: the answer is asked for again when the kernel or QEMU is
// another, and only then.
func TestProbeRemembers(t *testing.T) {
	in := probeInput(t, "aborts") // so that the answer is TCG on every host
	file := filepath.Join(in.CacheDir, "accelerator.json")
	ask := func() Accel {
		t.Helper()
		v, a, err := probe(t.Context(), in)
		if err != nil || v != (Version{7, 2, 22}) {
			t.Fatal(v, err)
		}
		return a
	}
	first := ask()
	if first.Name != TCG || first.Reason == "" {
		t.Fatalf("%+v", first)
	}
	// Plant another answer: if it comes back, nothing was tried.
	plant := func(key string) {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s := strings.Replace(string(b), strconv.Quote(first.Reason), `"planted"`, 1)
		if key != "" {
			s = strings.Replace(s, `"`+key+`": "`, `"`+key+`": "another `, 1)
		}
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plant("")
	if got := ask(); got.Reason != "planted" {
		t.Errorf("asked again: %+v", got)
	}
	for _, key := range []string{"Boot", "QEMU", "Kernel", "Initrd"} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		ask()
		plant(key)
		if got := ask(); got != first {
			t.Errorf("another %s: %+v", key, got)
		}
	}
	for _, broken := range []string{"", "{", "[]", `{"Accel": {"Name": "magic"}}`} {
		if err := os.WriteFile(file, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := ask(); got != first {
			t.Errorf("the file says %q: %+v", broken, got)
		}
	}
	left, err := os.ReadDir(in.CacheDir)
	if err != nil || len(left) != 1 {
		t.Errorf("the cache holds %v, %v", left, err)
	}
}

// TestProbeBound boots on /dev/kvm where there is one, with a QEMU that hangs:
// the answer must come within its bound.
func TestProbeBound(t *testing.T) {
	in := probeInput(t, "hangs")
	start := time.Now()
	_, a, err := probe(t.Context(), in)
	if err != nil || a.Name != TCG || a.Reason == "" {
		t.Errorf("%+v, %v", a, err)
	}
	if took := time.Since(start); took > patience {
		t.Errorf("it took %v", took)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, errors.New("the user has gone"))
	defer cancel()
	in = probeInput(t, "hangs")
	if _, err := os.Stat("/dev/kvm"); err == nil {
		if _, _, err := probe(ctx, in); err == nil || !strings.Contains(err.Error(), "the user has gone") {
			t.Errorf("cancelled: %v", err)
		}
		if _, err := os.Stat(in.CacheDir); err == nil {
			t.Error("a cancelled probe is remembered")
		}
	}
}

func TestFindQEMU(t *testing.T) {
	cure := func(err error) string {
		var he *hypervisor.Error
		if errors.As(err, &he) {
			return he.Cure
		}
		return ""
	}
	d := New(Options{Binary: "/nowhere/qemu", Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	if _, err := d.Version(t.Context()); !strings.Contains(cure(err), "apt-get install qemu-system-x86") {
		t.Errorf("no QEMU: %v", err)
	}
	if _, err := d.Create(t.Context(), testConfig(t), hypervisor.Handlers{}); !strings.Contains(cure(err), "apt-get install qemu-system-x86") {
		t.Errorf("no QEMU: %v", err)
	}
	old := filepath.Join(t.TempDir(), "qemu-old")
	if b, err := exec.Command("cp", self(t), old).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	d = New(Options{Binary: old, Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	if _, err := d.Create(t.Context(), testConfig(t), hypervisor.Handlers{}); err == nil || !strings.Contains(err.Error(), "6.2.0") || cure(err) == "" {
		t.Errorf("an old QEMU: %v", err)
	}
	d = New(Options{})
	v, err := d.Version(t.Context())
	if err != nil || !regexp.MustCompile(`^QEMU emulator [0-9.]+, /`).MatchString(v) {
		t.Errorf("the real one: %q, %v", v, err)
	}
}

// On a machine that is busy with other things QEMU takes its time to say its version.
func TestSlowVersion(t *testing.T) {
	slow := filepath.Join(t.TempDir(), "qemu-slow")
	if b, err := exec.Command("cp", self(t), slow).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if v, err := version(t.Context(), slow); err != nil || v != (Version{7, 2, 22}) {
		t.Errorf("%v, %v", v, err)
	}
}

// A QEMU that was asked once is not run again for its version, until it is
// another file.
func TestVersionIsRemembered(t *testing.T) {
	qemu, cache := filepath.Join(t.TempDir(), "qemu"), t.TempDir()
	if b, err := exec.Command("cp", self(t), qemu).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	d := New(Options{Binary: qemu, Shim: []string{self(t), "confine"}, CacheDir: cache})
	if v, err := d.Version(t.Context()); err != nil || !strings.Contains(v, "7.2.22") {
		t.Fatalf("asked: %q, %v", v, err)
	}
	id, err := identity(qemu)
	if err != nil {
		t.Fatal(err)
	}
	told := probeRecord{QEMU: id, Version: Version{9, 8, 7}, Accel: Accel{TCG, "a test"}}
	if err := writeProbe(probeFile(cache), told); err != nil {
		t.Fatal(err)
	}
	if v, err := d.Version(t.Context()); err != nil || !strings.Contains(v, "9.8.7") {
		t.Errorf("remembered: %q, %v", v, err)
	}
	if err := os.Chtimes(qemu, time.Now(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if v, err := d.Version(t.Context()); err != nil || !strings.Contains(v, "7.2.22") {
		t.Errorf("another file: %q, %v", v, err)
	}
}
