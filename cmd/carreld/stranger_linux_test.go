package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/place"
)

// stranger is a real module without dependencies, of more than 2,000 lines and
// with tests of its own, pinned.
const stranger = "github.com/Masterminds/semver/v3@v3.3.0"

// The main job, as a user types it: a stranger's module is built and tested in a
// guest; with a bug planted in it, the exit status says so.
func TestStrangersModule(t *testing.T) {
	bin := vmBinaries(t)
	top := t.TempDir()
	good, bad := filepath.Join(top, "good"), filepath.Join(top, "bad")
	out, err := exec.Command("go", "mod", "download", "-json", stranger).Output()
	if err != nil {
		t.Fatalf("download %s: %v", stranger, err)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{good, bad} {
		if err := os.CopyFS(d, os.DirFS(m.Dir)); err != nil {
			t.Fatal(err)
		}
	}
	lines := 0
	files, _ := filepath.Glob(filepath.Join(good, "*.go"))
	for _, f := range files {
		lines += strings.Count(read(t, f), "\n")
	}
	if lines < 2000 {
		t.Fatalf("the module has only %d lines", lines)
	}
	// The bug: a version is less than another where it was greater.
	src := filepath.Join(bad, "version.go")
	was := "func (v *Version) LessThan(o *Version) bool {\n\treturn v.Compare(o) < 0"
	text := read(t, src)
	if !strings.Contains(text, was) {
		t.Fatal("the place for the bug is gone")
	}
	os.Chmod(src, 0o644)
	write(t, src, strings.Replace(text, was, strings.Replace(was, "< 0", "> 0", 1), 1))

	p, err := place.Home()
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(top, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "CARREL_HOME="+home, "CARREL_CACHE="+p.Cache)
	carrel := func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "carrel"), args...)
		cmd.Env, cmd.Dir = env, good
		b, err := cmd.CombinedOutput()
		var ee *exec.ExitError
		if err != nil && !errors.As(err, &ee) {
			t.Fatal(err)
		}
		return string(b), cmd.ProcessState.ExitCode()
	}
	defer carrel("daemon", "stop", "--guests")

	begin := time.Now()
	text, status := carrel("run", "--name", "stranger", "-v", good, "-v", bad, "--", "sh", "-c", "cd "+good+" && go build ./... && go test ./...")
	if status != 0 || !strings.Contains(text, "ok  \tgithub.com/Masterminds/semver/v3") {
		t.Fatalf("status %d\n%s", status, text)
	}
	t.Logf("%d lines built and tested in %v, the guest's start included", lines, time.Since(begin))
	text, status = carrel("exec", "stranger", "--", "sh", "-c", "cd "+bad+" && go build ./... && go test ./...")
	if status == 0 || status == 125 || !strings.Contains(text, "FAIL") {
		t.Fatalf("with a bug planted: status %d\n%s", status, text)
	}
}

// F17: without QEMU the message names what is missing and the command that mends
// it, and the status is 125. The control is every other test.
func TestNoQEMU(t *testing.T) {
	bin := vmBinaries(t)
	p, err := place.Home()
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(t.TempDir(), "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(cache string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "carrel"), args...)
		cmd.Env = []string{"HOME=/nonexistent", "PATH=/nonexistent", "CARREL_HOME=" + home, "CARREL_CACHE=" + cache}
		b, err := cmd.CombinedOutput()
		var ee *exec.ExitError
		if err != nil && !errors.As(err, &ee) {
			t.Fatal(err)
		}
		return string(b), cmd.ProcessState.ExitCode()
	}
	defer run(p.Cache, "daemon", "stop", "--guests")
	text, status := run(p.Cache, "run", "--no-share", "--", "true")
	if status != 125 || !strings.Contains(text, "qemu-system-x86") || !strings.Contains(text, "apt-get install") {
		t.Errorf("status %d: %s", status, text)
	}
	if text, status := run(p.Cache, "doctor"); status != 1 || !strings.Contains(text, "qemu-system-x86") {
		t.Errorf("doctor: status %d: %s", status, text)
	}
	run(p.Cache, "daemon", "stop")
	if text, status = run(filepath.Join(home, "empty"), "run", "--no-share", "--", "true"); status != 125 || !strings.Contains(text, "carrel image build") {
		t.Errorf("no image: status %d: %s", status, text)
	}
}
