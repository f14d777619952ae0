package seatbelt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func shareProcess() Process {
	return Process{
		Program: "/opt/carrel/bin/carreld",
		Write:   []string{"/Users/u/src/app", "/Users/u/Library/Carrel/state/guests/otter/review/1"},
	}
}

func egressProcess() Process {
	return Process{
		Program: "/opt/carrel/bin/carreld", Dial: true,
		Write: []string{"/Users/u/Library/Carrel/state/guests/otter/audit"}, Listen: "/Users/u/Library/Carrel/run/e1",
		Files: []string{"/Users/u/roots.pem"},
	}
}

func machineProcess() Process {
	return Process{
		Program: "/opt/carrel/bin/carrel-keeper", Machine: true, Caches: "/private/var/folders/ab/cd/C",
		Read:  []string{"/Users/u/Library/Caches/Carrel/images/default"},
		Write: []string{"/Users/u/Library/Carrel/state/guests/otter"},
	}
}

func TestProcessGolden(t *testing.T) {
	for name, p := range map[string]Process{
		"share-process": shareProcess(),
		"share-process-ro": {
			Program: "/opt/carrel/bin/carreld", Read: []string{`/Users/u/a "quoted" \ name`}, Write: []string{"/Users/u/Library/Carrel/state/guests/otter/review/1"},
		},
		"unpack-process":         {Program: "/opt/carrel/bin/carreld", Read: []string{"/Users/u/Library/Caches/Carrel/oci"}},
		"review-process-of-none": {Program: "/opt/carrel/bin/carreld"},
		"egress-process":         egressProcess(),
		"machine-process":        machineProcess(),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := p.Profile()
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "process", name+".sb")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the profile is not that of %s; again: go test ./hypervisor/seatbelt -run TestProcessGolden -update\n%s", golden, got)
			}
		})
	}
}

// TestProcessMeaning decides as the kernel is said to: see TestMeaning.
func TestProcessMeaning(t *testing.T) {
	type try struct {
		op, value string
		want      bool
	}
	both := []try{
		{"file-read-data", "/opt/carrel/bin/carreld", true},
		{"process-exec", "/opt/carrel/bin/carreld", true},
		{"process-exec", "/bin/sh", false},
		{"process-exec", "/opt/carrel/bin/carrel-keeper", false},
		{"process-fork", "", false},
		{"signal", "self", true},
		{"signal", "others", false},
		{"process-info-pidinfo", "others", false},
		{"file-read-data", "/usr/lib/libSystem.B.dylib", true},
		{"file-write-data", "/usr/lib/libSystem.B.dylib", false},
		{"file-read-metadata", "/Users/u", true},
		{"file-read-data", "/Users/u", false},
		{"file-read-data", "/Users", false},
		{"file-read-data", "/Users/u/.ssh/id_ed25519", false},
		{"file-read-data", "/Users/u/src/other/x", false},
		{"file-read-data", "/Users/u/Library/Carrel/state/guests/otter/journal", false},
		{"file-read-data", "/Users/u/Library/Keychains/login.keychain-db", false},
		{"file-write-create", "/private/tmp/x", false},
		{"file-write-create", "/Users/Shared/x", false},
		{"file-read-data", "/private/etc/passwd", false},
		{"file-write-setugid", "/Users/u/src/app/x", false},
		{"file-mknod", "/Users/u/src/app/x", false},
		{"file-read-data", "/dev/disk0", false},
		{"mach-lookup", "com.apple.coreservices.launchservicesd", false},
		{"mach-lookup", "com.apple.Virtualization.VirtualMachine", false},
		{"sysctl-read", "hw.ncpu", true},
		{"sysctl-read", "kern.procargs2", false},
		{"lsopen", "", false},
		{"appleevent-send", "", false},
		{"job-creation", "", false},
		{"pseudo-tty", "", false},
	}
	for name, tc := range map[string]struct {
		p     Process
		tries []try
	}{
		"share": {shareProcess(), []try{
			{"file-read-data", "/Users/u/src/app/main.go", true},
			{"file-write-data", "/Users/u/src/app/main.go", true},
			{"file-write-unlink", "/Users/u/src/app/main.go", true},
			{"file-read-data", "/Users/u/src/app2/main.go", false},
			{"file-write-create", "/Users/u/Library/Carrel/state/guests/otter/review/1/x", true},
			{"file-read-data", "/Users/u/Library/Carrel/state/guests/otter/review/2/x", false},
			{"file-read-data", "/private/etc/hosts", false},
			{"mach-lookup", "com.apple.trustd.agent", false},
			{"mach-lookup", "com.apple.system.opendirectoryd.libinfo", false},
			{"network-outbound", "*:*", false},
			{"network-outbound", "localhost:*", false},
			{"network-bind", "localhost:*", false},
		}},
		"share to be read": {Process{Program: "/opt/carrel/bin/carreld", Read: []string{"/Users/u/src/app"}}, []try{
			{"file-read-data", "/Users/u/src/app/main.go", true},
			{"file-write-data", "/Users/u/src/app/main.go", false},
			{"file-write-create", "/Users/u/src/app/new", false},
		}},
		"egress": {egressProcess(), []try{
			{"network-outbound", "*:*", true},
			{"network-bind", "localhost:*", true},
			{"file-write-create", "/Users/u/Library/Carrel/run/e1", true},
			{"file-write-create", "/Users/u/Library/Carrel/run/k1", false},
			{"file-write-create", "/Users/u/Library/Carrel/state/guests/otter/audit/1", true},
			{"file-read-data", "/Users/u/roots.pem", true},
			{"file-write-data", "/Users/u/roots.pem", false},
			{"file-read-data", "/Users/u/src/app/main.go", false},
			{"file-read-data", "/private/etc/hosts", true},
			{"mach-lookup", "com.apple.trustd.agent", true},
			{"mach-lookup", "com.apple.cfprefsd.agent", false},
		}},
	} {
		text, err := tc.p.Profile()
		if err != nil {
			t.Fatal(err)
		}
		forms, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range append(both, tc.tries...) {
			if got := decide(forms, x.op, x.value); got != x.want {
				t.Errorf("%s: %s %s: allowed %t", name, x.op, x.value, got)
			}
		}
	}
}

// TestLintProcess: each of these would open what the process was not given. The
// control is the profile without them.
func TestLintProcess(t *testing.T) {
	for name, p := range map[string]Process{"share": shareProcess(), "egress": egressProcess()} {
		good, err := p.Profile()
		if err != nil {
			t.Fatal(err)
		}
		if err := LintProcess(good, p); err != nil {
			t.Errorf("control: %s: %v", name, err)
		}
		for _, rule := range []string{
			`(allow default)`,
			`(allow process-fork)`,
			`(allow pseudo-tty)`,
			`(allow process-exec* (literal "/bin/sh"))`,
			`(allow process-exec* (subpath "/usr/bin"))`,
			`(allow file-map-executable (subpath "/Users/u/src/app"))`,
			`(allow file-read* (subpath "/Users/u"))`,
			`(allow file-read* (literal "/Users/u/.netrc"))`,
			`(allow file-read-metadata (subpath "/Users/u"))`,
			`(allow file-read-data (literal "/Users/u/src/app"))`,
			`(allow file-write* (subpath "/usr/lib"))`,
			`(allow file-write-data (literal "/dev/zero"))`,
			`(allow file* (subpath "/Users/u/src/app"))`,
			`(allow file-read* (require-not (subpath "/Users/u/src/app")))`,
			`(allow file-ioctl (literal "/dev/null"))`,
			`(allow mach-lookup (global-name "com.apple.cfprefsd.agent"))`,
			`(allow mach-register (global-name "com.apple.trustd"))`,
			`(allow network-outbound)`,
			`(allow network* (remote tcp "*:*"))`,
			`(allow network-outbound (local tcp "*:*"))`,
			`(allow network-bind (remote tcp "*:*"))`,
			`(allow network-outbound (remote tcp "localhost:22"))`,
			`(allow network-outbound (remote unix-socket (literal "/private/var/run/docker.sock")))`,
			`(allow network-outbound (remote unix-socket))`,
			`(allow network-bind (local unix-socket (subpath "/Users/u/Library/Carrel/run")))`,
			`(allow network-bind (local unix-socket (literal "/Users/u/Library/Carrel/run/k1")))`,
			`(allow file-read* (literal "/private/etc/hosts") (regex #"^/Users/.*$"))`,
			`(allow file-write-data (literal "/dev/null" "/Users/u/.zshrc"))`,
			`(allow network-outbound (remote unix-socket (literal "/private/var/run/mDNSResponder" "/private/var/run/docker.sock")))`,
			`(allow sysctl-write (sysctl-name "kern.hostname"))`,
			`(allow ipc-posix-shm* (ipc-posix-name "apple.shm.notification_center"))`,
		} {
			if err := LintProcess(good+rule+"\n", p); err == nil {
				t.Errorf("%s: %s passes", name, rule)
			}
		}
	}
	// What one that runs a machine may have is too much for one that does not, and it
	// may hand on no more than what it has.
	machine, err := machineProcess().Profile()
	if err != nil {
		t.Fatal(err)
	}
	p := machineProcess()
	for _, rule := range []string{
		`(allow mach-lookup (xpc-service-name "com.apple.Virtualization.Installation"))`,
		`(allow mach-lookup (global-name "com.apple.Virtualization.VirtualMachine"))`,
		`(allow generic-issue-extension)`,
		`(allow generic-issue-extension (extension-class "com.apple.virtualization.extension.audio-input"))`,
		`(allow generic-issue-extension (extension-class "com.apple.virtualization.extension.fuse"))`,
		`(allow file-issue-extension (subpath "/Users/u/Library/Carrel/state/guests/otter"))`,
		`(allow file-issue-extension (extension-class "com.apple.app-sandbox.read"))`,
		`(allow file-issue-extension (require-any (subpath "/Users/u/Library/Carrel/state/guests/otter") (extension-class "com.apple.app-sandbox.read")))`,
		`(allow file-issue-extension (require-all (subpath "/Users/u") (extension-class "com.apple.app-sandbox.read")))`,
		`(allow file-issue-extension (require-all (subpath "/Users/u/Library/Carrel/state/guests/otter") (extension-class "com.apple.app-sandbox.read-write")))`,
		`(allow network-outbound (remote tcp "*:*"))`,
		`(allow process-fork)`,
		`(allow iokit-open)`,
	} {
		if err := LintProcess(machine+rule+"\n", p); err == nil {
			t.Errorf("a machine's: %s passes", rule)
		}
	}
	if p.Machine = false; LintProcess(machine, p) == nil {
		t.Error("a machine for a process that runs none")
	}
	// What one that dials may have is too much for one that does not.
	egress, err := egressProcess().Profile()
	if err != nil {
		t.Fatal(err)
	}
	p = egressProcess()
	p.Dial = false
	if err := LintProcess(egress, p); err == nil || !strings.Contains(err.Error(), "network") {
		t.Errorf("a way out for one that has none: %v", err)
	}
	// What a profile of a guest may have, too.
	guest, err := Profile(config(share("/Users/u/src/app", false)), host())
	if err != nil {
		t.Fatal(err)
	}
	if err := LintProcess(guest, shareProcess()); err == nil {
		t.Error("the profile of a guest passes for one of a share process")
	}
}

func TestProcessRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Process)
		want   string
	}{
		"no program":      {func(p *Process) { p.Program = "" }, "absolute"},
		"the root":        {func(p *Process) { p.Write = append(p.Write, "/") }, "root"},
		"a link":          {func(p *Process) { p.Write = append(p.Write, "/tmp/x") }, "is a link"},
		"not clean":       {func(p *Process) { p.Read = append(p.Read, "/Users/u/../v") }, "clean"},
		"a newline":       {func(p *Process) { p.Read = append(p.Read, "/Users/u/a\n(allow default)") }, "control"},
		"the system":      {func(p *Process) { p.Write = append(p.Write, "/usr") }, "system"},
		"its own program": {func(p *Process) { p.Write = append(p.Write, "/opt/carrel") }, "own program"},
		"many":            {func(p *Process) { p.Read = make([]string, maxFolders) }, "possible"},
		"a socket":        {func(p *Process) { p.Listen = "run/e1" }, "absolute"},
	} {
		p := shareProcess()
		if _, err := p.Profile(); err != nil {
			t.Fatalf("control: %v", err)
		}
		tc.change(&p)
		if _, err := p.Profile(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
