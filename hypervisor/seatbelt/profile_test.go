package seatbelt

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/hypervisor"
)

var update = flag.Bool("update", false, "write the golden profiles anew")

func share(path string, readOnly bool) hypervisor.Share {
	return hypervisor.Share{Path: path, GuestPath: path, ReadOnly: readOnly, Plain: true}
}

func config(shares ...hypervisor.Share) hypervisor.Config {
	return hypervisor.Config{Name: "quiet-otter", Dir: "/Users/u/Library/Carrel/quiet-otter", Kernel: "/", Initrd: "/", Root: HostRoot, CPUs: 2, MemoryMiB: 2048, Shares: shares}
}

func host() Host {
	return Host{Agent: "/opt/carrel/bin/carrel-agent", Files: "/Users/u/Library/Carrel/quiet-otter/files", Home: "/Users/u"}
}

func TestGolden(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  hypervisor.Config
		host func(*Host)
	}{
		"plain":  {config(), nil},
		"shares": {config(share("/Users/u/src/app", false), share("/Users/u/notes", true)), func(h *Host) { h.Proxy = 49200 }},
		"nested": {config(share("/Users/u/src/app/third/party", true), share("/Users/u/src/app", false)), func(h *Host) { h.Proxy = 49200 }},
		"names": {config(hypervisor.Share{Path: "/Users/u/src/app", GuestPath: "/Users/u/src/app"}), func(h *Host) {
			h.Names = []Names{{Hide: []string{".env", ".env.*", "!.env.example", "*.pem", "/private/**/key"}, Protect: []string{".git/hooks", ".vscode", "!node_modules/**/.vscode"}}}
		}},
		"ports":    {config(), func(h *Host) { h.Proxy, h.Ports = 49200, []uint16{3000, 8080} }},
		"spelling": {config(share(`/Users/u/a "quoted" \ name`, false), share("/Users/u/Überraschung 🎁 (1)", true), share("/Users/u/x;(allow default)", true)), nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := host()
			if tc.host != nil {
				tc.host(&h)
			}
			got, err := Profile(tc.cfg, h)
			if err != nil {
				t.Fatal(err)
			}
			if err := Lint(got); err != nil {
				t.Errorf("lint: %v", err)
			}
			golden := filepath.Join("testdata", name+".sb")
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
				t.Errorf("the profile is not that of %s; again: go test ./hypervisor/seatbelt -run TestGolden -update\n%s", golden, got)
			}
		})
	}
}

// TestMeaning decides as the kernel is said to: the last rule that matches.
func TestMeaning(t *testing.T) {
	h := host()
	h.Proxy = 49200
	text, err := Profile(config(share("/Users/u/src/app", false), share("/Users/u/src/app/third/party", true), share("/Users/u/notes", true)), h)
	if err != nil {
		t.Fatal(err)
	}
	forms, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		op, path string
		want     bool
	}{
		{"file-read-data", "/Users/u/src/app/main.go", true},
		{"file-write-data", "/Users/u/src/app/main.go", true},
		{"file-write-create", "/Users/u/src/app/new", true},
		{"file-write-unlink", "/Users/u/src/app/main.go", true},
		{"file-write-unlink", "/Users/u/src/app", false},
		{"file-write-unlink", "/Users/u/src/app/third", false},
		{"file-write-unlink", "/Users/u/src/app/third/other", true},
		{"file-read-data", "/Users/u/src/app/third/party/x", true},
		{"file-write-data", "/Users/u/src/app/third/party/x", false},
		{"file-write-create", "/Users/u/src/app/third/party/x", false},
		{"file-write-setugid", "/Users/u/src/app/main.go", false},
		{"file-write-flags", "/Users/u/src/app/main.go", false},
		{"file-link", "/Users/u/src/app/main.go", false},
		{"file-mount", "/Users/u/src/app", false},
		{"file-mknod", "/Users/u/src/app/device", false},
		{"file-read-data", "/Users/u/notes/a", true},
		{"file-write-data", "/Users/u/notes/a", false},
		{"file-read-data", "/Users/u/notes2/a", false},
		{"file-read-metadata", "/Users/u", true},
		{"file-read-data", "/Users/u", false},
		{"file-read-metadata", "/Users/u/.ssh", false},
		{"file-read-data", "/Users/u/.ssh/id_ed25519", false},
		{"file-read-data", "/Users/u/Library/Carrel/quiet-otter/journal", false},
		{"file-write-data", "/Users/u/Library/Carrel/quiet-otter/files/tmp/x", true},
		{"file-write-unlink", "/Users/u/Library/Carrel/quiet-otter/files", false},
		{"file-read-data", "/usr/lib/libobjc.A.dylib", true},
		{"file-write-data", "/usr/lib/libobjc.A.dylib", false},
		{"file-read-data", "/System/Volumes/Data/Users/u/.ssh/id_ed25519", false},
		{"file-read-data", "/opt/homebrew/var/postgres/base", false},
		{"file-read-data", "/private/etc/master.passwd", false},
		{"file-read-data", "/private/var/folders/zz/other", false},
		{"file-read-data", "/Volumes/Backup/x", false},
		{"process-exec", "/usr/bin/make", true},
		{"process-exec", "/Users/u/src/app/run", true},
		{"process-exec", "/Applications/Safari.app/Contents/MacOS/Safari", false},
		{"file-write-data", "/dev/null", true},
		{"file-read-data", "/dev/disk0", false},
		{"file-read-data", "/dev/ttys003", false}, // a terminal of somebody else: no extension
		{"mach-lookup", "com.apple.system.opendirectoryd.libinfo", true},
		{"mach-lookup", "com.apple.trustd.agent", false},
		{"mach-lookup", "com.apple.coreservices.launchservicesd", false},
		{"sysctl-read", "hw.ncpu", true},
		{"sysctl-read", "kern.procargs2", false},
		{"sysctl-write", "kern.hostname", false},
		{"network-outbound", "localhost:49200", true},
		{"network-inbound", "localhost:49200", true},
		{"network-bind", "localhost:49200", false},
		{"network-outbound", "localhost:5432", false},
		{"network-outbound", "93.184.216.34:443", false},
		{"signal", "same-sandbox", true},
		{"signal", "others", false},
		{"process-info-pidinfo", "others", false},
		{"process-info-pidinfo", "same-sandbox", true},
		{"process-fork", "", true},
		{"lsopen", "", false},
		{"appleevent-send", "", false},
		{"job-creation", "", false},
		{"iokit-open", "", false},
		{"system-socket", "", false},
	} {
		if got := decide(forms, tc.op, tc.path); got != tc.want {
			t.Errorf("%s %s: allowed %t", tc.op, tc.path, got)
		}
	}
}

// decide is how a profile reads by what is known of the language: an operation
// that ends in * stands for those that begin so, filters are alternatives, and
// of the rules that match the last counts.
func decide(forms []expr, op, value string) (allowed bool) {
	for _, f := range forms[1:] {
		matches := false
		var rest []expr
		for i, e := range f.of[1:] {
			if e.kind != symbol {
				rest = f.of[i+1:]
				break
			}
			family, star := strings.CutSuffix(e.word, "*")
			matches = matches || e.word == op || e.word == "default" || star && strings.HasPrefix(op, family)
		}
		if !matches {
			continue
		}
		hit := len(rest) == 0
		for _, e := range rest {
			for _, v := range e.of[1:] {
				switch e.head() {
				case "literal", "global-name", "sysctl-name", "target", "ipc-posix-name":
					hit = hit || v.word == value
				case "regex":
					hit = hit || expression(v.word).MatchString(value)
				case "subpath":
					hit = hit || within(value, v.word)
				case "sysctl-name-prefix", "ipc-posix-name-prefix":
					hit = hit || strings.HasPrefix(value, v.word)
				case "local", "remote":
					hit = hit || v.kind == text && v.word == value
				}
			}
		}
		if hit {
			allowed = f.head() == "allow"
		}
	}
	return allowed
}

var compiled = map[string]*regexp.Regexp{}

func expression(s string) *regexp.Regexp {
	if compiled[s] == nil {
		compiled[s] = regexp.MustCompile(s)
	}
	return compiled[s]
}

func TestRefused(t *testing.T) {
	if _, err := Profile(config(share("/Users/u/src/app", false)), host()); err != nil {
		t.Fatalf("control: %v", err)
	}
	long := "/Users/" + strings.Repeat("a", maxPath)
	for name, tc := range map[string]struct {
		cfg  hypervisor.Config
		host func(*Host)
		want string
	}{
		"image":           {func() hypervisor.Config { c := config(); c.Root = "/images/default/root.erofs"; return c }(), nil, "no Linux"},
		"newline":         {config(share("/Users/u/a\n(allow default)", true)), nil, "control character"},
		"escape":          {config(share("/Users/u/a\x1b[2J", true)), nil, "control character"},
		"NUL":             {config(share("/Users/u/a\x00b", true)), nil, "control character"},
		"no UTF-8":        {config(share("/Users/u/a\xff", true)), nil, "UTF-8"},
		"relative":        {config(share("src", true)), nil, "absolute"},
		"root":            {config(share("/", true)), nil, "root"},
		"not clean":       {config(share("/Users/u/../v", true)), nil, "clean"},
		"slash at end":    {config(share("/Users/u/a/", true)), nil, "clean"},
		"a link":          {config(share("/tmp/a", true)), nil, "/private/tmp/a"},
		"long":            {config(share(long, true)), nil, "bytes"},
		"data volume":     {config(share("/System/Volumes/Data/Users/u/a", true)), nil, "data volume"},
		"elsewhere":       {config(hypervisor.Share{Path: "/Users/u/a", GuestPath: "/src"}), nil, "no other path"},
		"overlay":         {config(hypervisor.Share{Path: "/Users/u/a", GuestPath: "/Users/u/a", Overlay: true}), nil, "layer"},
		"twice":           {config(share("/Users/u/a", true), share("/Users/u/a", false)), nil, "twice"},
		"home":            {config(share("/Users/u", true)), nil, "home directory"},
		"above home":      {config(share("/Users", true)), nil, "home directory"},
		"own folder":      {config(share("/Users/u/Library", true)), nil, "own folder"},
		"system":          {config(share("/usr/local", false)), nil, "system's"},
		"agent":           {config(share("/opt/carrel", false)), nil, "agent"},
		"port 0":          {config(), func(h *Host) { h.Ports = []uint16{0} }, "kernel picks"},
		"proxy's port":    {config(), func(h *Host) { h.Proxy, h.Ports = 4000, []uint16{4000} }, "proxy"},
		"many ports":      {config(), func(h *Host) { h.Ports = make([]uint16, maxPorts+1) }, "limit"},
		"many shares":     {config(make([]hypervisor.Share, maxShares+1)...), nil, "limit"},
		"no agent":        {config(), func(h *Host) { h.Agent = "" }, "agent"},
		"no folder":       {config(), func(h *Host) { h.Files = "" }, "folder"},
		"no home":         {config(), func(h *Host) { h.Home = "" }, "home directory"},
		"the zero values": {hypervisor.Config{}, func(h *Host) { *h = Host{} }, "image"},
	} {
		h := host()
		if tc.host != nil {
			tc.host(&h)
		}
		text, err := Profile(tc.cfg, h)
		if err == nil || !strings.Contains(err.Error(), tc.want) || text != "" {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// FuzzProfile: whatever a share is called, the profile says what it would for
// any other, about that folder.
func FuzzProfile(f *testing.F) {
	for _, s := range []string{"/Users/u/a", `/Users/u/")(allow default)("`, `/Users/u/\`, "/Users/u/\u2028", "/Users/u/é\u0301", "/Users/u/;x"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	plain, err := Profile(config(share("/Users/u/plain", true)), host())
	if err != nil {
		f.Fatal(err)
	}
	want, err := parse(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path string, readOnly bool) {
		text, err := Profile(config(share(path, readOnly)), host())
		if err != nil {
			return
		}
		if err := Lint(text); err != nil {
			t.Fatalf("a profile that does not pass: %v\n%s", err, text)
		}
		forms, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if len(forms) != len(want) {
			t.Fatalf("%d forms, want %d", len(forms), len(want))
		}
		if !decide(forms, "file-read-data", path+"/x") || decide(forms, "file-write-data", path+"/x") == readOnly {
			t.Errorf("%q is not shared as it should be", path)
		}
		if decide(forms, "file-read-data", "/Users/u/.ssh/id_ed25519") && !within("/Users/u/.ssh/id_ed25519", path) || decide(forms, "network-outbound", "localhost:1") {
			t.Error("the share's name has opened something else")
		}
	})
}
