package bubblewrap

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func plans() map[string]Plan {
	return map[string]Plan{
		"root-image": {Mapped: true, Filters: 3, MemoryMiB: 2048, Binds: []Bind{
			{Source: "/tmp/agent", Dest: insideAgent}, {Source: "/tmp/image", Dest: insideImage},
			{Source: "/tmp/changes", Dest: insideChanges, Writable: true},
			{Source: "/tmp/share0", Dest: insideShares + "/0"}, {Source: "/tmp/share1", Dest: insideShares + "/1", Writable: true},
		}},
		"user-image": {Filters: 3, MemoryMiB: 512, Binds: []Bind{
			{Source: "/usr/bin/carrel-agent", FD: 10, Dest: insideAgent}, {Source: "/cache/unpacked/1", FD: 11, Dest: insideImage},
			{Source: "/home/u/p", FD: 12, Dest: insideShares + "/0", Writable: true},
		}},
		"root-host": {Mapped: true, HostRoot: true, Filters: 3, MemoryMiB: 128, Fuse: "/tmp/dev/fuse",
			Binds: []Bind{{Source: "/tmp/agent", Dest: insideAgent}, {Source: "/usr", Dest: insideImage + "/usr"}},
			Links: []Link{{"usr/bin", insideImage + "/bin"}},
		},
	}
}

func TestArgsGolden(t *testing.T) {
	for name, p := range plans() {
		options, command := Args(p)
		got := strings.Join(slices.Concat(options, []string{"--"}, command), "\n") + "\n"
		file := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("differs from %s:\n%s\nif it should: go test ./hypervisor/bubblewrap -run ArgsGolden -update", file, got)
		}
	}
}

// TestArgsHold checks for every plan what no golden file should ever lose.
func TestArgsHold(t *testing.T) {
	for name, p := range plans() {
		options, command := Args(p)
		for _, must := range []string{"--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--die-with-parent", "--new-session", "--clearenv", "--add-seccomp-fd"} {
			if !slices.Contains(options, must) {
				t.Errorf("%s: no %s", name, must)
			}
		}
		for _, never := range []string{"--share-net", "--unshare-user-try", "--unshare-cgroup-try", "--setenv", "--cap-drop", "--overlay"} {
			if slices.Contains(options, never) {
				t.Errorf("%s: %s", name, never)
			}
		}
		if slices.Contains(options, "--unshare-user") == p.Mapped {
			t.Errorf("%s: the user namespace", name)
		}
		if n := strings.Count(strings.Join(options, " "), "--add-seccomp-fd"); n != p.Filters {
			t.Errorf("%s: %d filters", name, n)
		}
		for i, o := range options {
			// The host's root, or a folder of its users, is never mounted.
			if strings.HasSuffix(o, "bind") && (options[i+1] == "/" || strings.HasPrefix(options[i+1], "/home")) {
				t.Errorf("%s: %s %s", name, o, options[i+1])
			}
			if o == "--dev-bind" && options[i+2] == "/dev/fuse" && p.Fuse != "" {
				continue
			}
			if o == "--dev-bind" && !slices.Contains(devices, strings.TrimPrefix(options[i+1], "/dev/")) {
				t.Errorf("%s: the device %s", name, options[i+1])
			}
		}
		if command[0] != insideAgent || command[1] != "wall" {
			t.Errorf("%s: %q is run", name, command)
		}
	}
}

// TestHostRoot: what is shown of the host's system is a list, on which no
// folder with users' things is.
func TestHostRoot(t *testing.T) {
	var p Plan
	hostRoot(&p)
	if len(p.Binds) < 5 {
		t.Fatalf("only %d: %v", len(p.Binds), p.Binds)
	}
	for _, b := range p.Binds {
		if b.Writable || !strings.HasPrefix(b.Dest, insideImage+"/") {
			t.Errorf("%+v", b)
		}
		for _, never := range []string{"/etc", "/etc/ssl", "/etc/ssl/private", "/etc/shadow", "/etc/ssh", "/etc/sudoers", "/home", "/root", "/run", "/var", "/opt", "/srv", "/tmp", "/sys", "/proc", "/boot"} {
			if b.Source == never {
				t.Errorf("%s is shown", never)
			}
		}
	}
}
