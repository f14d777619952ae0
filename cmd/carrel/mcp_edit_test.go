package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/tailscale/hujson"

	"github.com/carrel-vm/carrel/guest/client"
)

var update = flag.Bool("update", false, "write the golden files of settings again")

// keyOf is the object in which the golden file's servers are.
func keyOf(name string) string {
	if name == "vscode" {
		return "servers"
	}
	return "mcpServers"
}

var anEntry = serverEntry{Type: "stdio", Command: "/usr/bin/carrel", Args: []string{"mcp", "-v", "/home/ann/<project>:ro"}}

// TestSettings compares what becomes of files of settings, byte by byte: with our
// entry, and with it taken out again.
func TestSettings(t *testing.T) {
	befores, err := filepath.Glob("testdata/mcp/*.before")
	if err != nil || len(befores) < 6 {
		t.Fatalf("%d files, %v", len(befores), err)
	}
	for _, before := range befores {
		name := strings.TrimSuffix(filepath.Base(before), ".before")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(before)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "settings.json")
			if err := os.WriteFile(file, text, 0o640); err != nil {
				t.Fatal(err)
			}
			for _, remove := range []bool{false, true} {
				e, err := prepare(file, keyOf(name), anEntry, remove)
				if err != nil || e == nil {
					t.Fatalf("%v, %v", e, err)
				}
				if _, err := e.write(); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				golden := "testdata/mcp/" + name + map[bool]string{false: ".after", true: ".removed"}[remove]
				if *update {
					if err := os.WriteFile(golden, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, %v:\n%s\nwant:\n%s", golden, err, got, want)
				}
				if !remove {
					entryIs(t, got, keyOf(name))
					// Once more, there is nothing to do.
					if e, err := prepare(file, keyOf(name), anEntry, false); err != nil || !bytes.Equal(e.before, e.after) {
						t.Errorf("a second time it would become %s, %v", e.after, err)
					}
				}
			}
			if kept, err := os.ReadFile(file + ".before-carrel"); err != nil || !bytes.Equal(kept, text) {
				t.Errorf("what was there is kept as %q, %v", kept, err)
			}
			if fi, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != 0o640 {
				t.Errorf("the mode is %v, %v", fi.Mode(), err)
			}
		})
	}
}

// entryIs reads settings as a program would.
func entryIs(t *testing.T, text []byte, key string) {
	t.Helper()
	std, err := hujson.Standardize(bytes.Clone(text))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	var servers map[string]serverEntry
	if err := json.Unmarshal(std, &all); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(all[key], &servers); err != nil {
		t.Fatal(err)
	}
	got := servers["carrel"]
	if got.Command != anEntry.Command || strings.Join(got.Args, " ") != strings.Join(anEntry.Args, " ") {
		t.Errorf("a program reads %+v", got)
	}
}

// What cannot be understood stays as it is.
func TestSettingsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":           `{"mcpServers": {`,
		"two values":        `{} {}`,
		"no object":         `[1]`,
		"servers are none":  `{"mcpServers": []}`,
		"servers are twice": `{"mcpServers": {}, "mcpServers": {"a": {}}}`,
		"carrel is twice":   `{"mcpServers": {"carrel": {}, "carrel": {"a": 1}}}`,
		"byte order mark":   "\ufeff{}",
		"UTF-16":            "\xff\xfe{\x00}\x00",
	} {
		file := filepath.Join(t.TempDir(), "settings.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, remove := range []bool{false, true} {
			e, err := prepare(file, "mcpServers", anEntry, remove)
			if client.CodeOf(err) != "settings_unreadable" || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %+v, %v", name, e, err)
			}
		}
	}
}

// The command asks before it writes, and --yes is a yes.
func TestInstall(t *testing.T) {
	user := t.TempDir()
	for _, name := range []string{"HOME", "USERPROFILE"} {
		t.Setenv(name, user)
	}
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("APPDATA", "")
	if status, _, stderr := call(t, "mcp", "install"); status != 125 || !strings.Contains(stderr, "--client") {
		t.Errorf("without any program: %d, %s", status, stderr)
	}
	if status, _, _ := call(t, "mcp", "install", "--client", "nonsense"); status != 2 {
		t.Errorf("a program that is not known: %d", status)
	}
	file := filepath.Join(user, ".cursor", "mcp.json")
	status, stdout, stderr := call(t, "mcp", "install", "--client", "cursor")
	if status != 1 || !strings.Contains(stdout, `"${workspaceFolder}:review"`) || !strings.Contains(stderr, "--yes") || isThere(file) {
		t.Errorf("unasked: %d, %s, %s, written: %v", status, stdout, stderr, isThere(file))
	}
	if status, _, stderr := call(t, "mcp", "install", "--client", "cursor", "--yes"); status != 0 || !isThere(file) {
		t.Errorf("with --yes: %d, %s", status, stderr)
	}
	if status, _, stderr := call(t, "mcp", "install", "-y"); status != 0 || !strings.Contains(stderr, file) {
		t.Errorf("again, found by itself: %d, %s", status, stderr)
	}
}
