package carrel_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// released are the names of the files that a release of the version consists
// of. The script holds itself to this list when it is done.
func released(t *testing.T, version string) []string {
	t.Helper()
	return strings.Fields(must(t, "scripts/release", "--list", version))
}

// TestReleaseHosts: a release has programs for every host that make check
// compiles for, and for Linux.
func TestReleaseHosts(t *testing.T) {
	b, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^ELSEWHERE := (.+)$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("the Makefile has no ELSEWHERE")
	}
	want := map[string]bool{}
	for _, host := range append(strings.Fields(string(m[1])), "linux/amd64", "linux/arm64") {
		want[host] = true
	}
	got := map[string]bool{}
	for _, name := range released(t, "1.2.3") {
		if m := regexp.MustCompile(`^carrel-1\.2\.3-([a-z]+)-([a-z0-9]+)\.(tar\.gz|zip)$`).FindStringSubmatch(name); m != nil {
			got[m[1]+"/"+m[2]] = true
			if (m[3] == "zip") != (m[1] == "windows") {
				t.Errorf("%s is packed as for another system", name)
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("a release is for %v, the Makefile's ELSEWHERE and Linux are %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// TestReleaseNames: what the formula and winget's manifests fetch is among what
// a release consists of.
func TestReleaseNames(t *testing.T) {
	dir, _ := rendered(t)
	names, fetched := released(t, "1.2.3"), 0
	for _, file := range []string{"carrel.rb", "CarrelVM.Carrel.installer.yaml"} {
		if !slices.Contains(names, file) {
			t.Errorf("%s is in no release", file)
		}
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`/releases/download/v1\.2\.3/([^\s"]+)`).FindAllStringSubmatch(string(b), -1) {
			fetched++
			if !slices.Contains(names, m[1]) {
				t.Errorf("%s fetches %s, which is in no release: %q", file, m[1], names)
			}
		}
	}
	if fetched != 3 {
		t.Errorf("the formula and the manifest fetch %d files, expected the sources and two zips", fetched)
	}

	// Debian writes what comes before a release in its own way, and a formula has no such version.
	early := released(t, "1.2.3-rc1")
	for _, name := range []string{"carrel_1.2.3~rc1_amd64.deb", "carrel_1.2.3~rc1_arm64.deb", "carrel-1.2.3-rc1-linux-amd64.tar.gz"} {
		if !slices.Contains(early, name) {
			t.Errorf("1.2.3-rc1 has no %s: %q", name, early)
		}
	}
	if slices.Contains(early, "carrel.rb") {
		t.Error("1.2.3-rc1 has a formula")
	}
}

// TestReleaseRefuses: what cannot become a release ends before anything is
// built. That a release is made otherwise is docs/install.md's to say: it takes
// minutes, and a test that made one would make nothing else.
func TestReleaseRefuses(t *testing.T) {
	there, key := t.TempDir(), filepath.Join(t.TempDir(), "key")
	fresh := filepath.Join(t.TempDir(), "out")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nothing":                   {nil, "scripts/release VERSION FOLDER"},
		"no folder":                 {[]string{"1.2.3"}, "scripts/release VERSION FOLDER"},
		"two numbers":               {[]string{"1.2", fresh}, "1.2 is no version"},
		"Debian's own way":          {[]string{"1.2.3~rc1", fresh}, "1.2.3~rc1 is no version"},
		"a version that is a path":  {[]string{"../1.2.3", fresh}, "is no version"},
		"a list of no version":      {[]string{"--list", "v1.2.3"}, "v1.2.3 is no version"},
		"a folder that is there":    {[]string{"1.2.3", there}, "name another folder"},
		"a folder among the source": {[]string{"1.2.3", "docs/none"}, "name another folder"},
		"no key":                    {[]string{"1.2.3", fresh, "--key", key}, key},
		"another option":            {[]string{"1.2.3", fresh, "--image", "x"}, "scripts/release VERSION FOLDER"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command("scripts/release", c.args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) {
				t.Errorf("%v: %s, expected %q", err, out, c.want)
			}
		})
	}
	for _, dir := range []string{fresh, "docs/none"} {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s was made: %v", dir, err)
		}
	}
	if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
