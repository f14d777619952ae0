package seatbelt

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRunsHere builds the agent for macOS on each processor, and knows it from
// what is none.
func TestRunsHere(t *testing.T) {
	dir := t.TempDir()
	build := func(goos, arch string) string {
		out := filepath.Join(dir, goos+arch)
		cmd := exec.Command("go", "build", "-o", out, "../../cmd/carrel-agent")
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build for %s on %s: %v\n%s", goos, arch, err, b)
		}
		return out
	}
	arm, intel, linux := build("darwin", "arm64"), build("darwin", "amd64"), build("linux", "amd64")
	for path, arch := range map[string]string{arm: "arm64", intel: "amd64"} {
		if err := runsHere(path, arch); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct{ path, arch, want string }{
		"for the other":  {arm, "amd64", "another processor"},
		"of Linux":       {linux, "amd64", "not a program of macOS"},
		"a script":       {text, "arm64", "not a program of macOS"},
		"a folder":       {dir, "arm64", "not a program"},
		"missing":        {filepath.Join(dir, "none"), "arm64", "no such file"},
		"on a processor": {arm, "riscv64", "no macOS"},
	} {
		if err := runsHere(tc.path, tc.arch); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", what, err, tc.want)
		}
	}
}
