package carrel_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/guest/doctor"
	"github.com/carrel-vm/carrel/guest/service"
)

// TestPackagedUnit holds the unit of the Debian package to the one that carrel
// daemon install writes.
func TestPackagedUnit(t *testing.T) {
	b, err := os.ReadFile("scripts/package/carrel.service")
	if err != nil {
		t.Fatal(err)
	}
	if want := service.PackagedUnit("/usr/lib/carrel/carreld"); string(b) != want {
		t.Errorf("scripts/package/carrel.service:\n%s\nwant:\n%s", b, want)
	}
}

// TestEntitlementsFile holds what scripts/sign signs in to what doctor looks for.
func TestEntitlementsFile(t *testing.T) {
	b, err := os.ReadFile("scripts/entitlements.plist")
	if err != nil {
		t.Fatal(err)
	}
	got, err := doctor.Entitlements(b)
	if err != nil || !slices.Equal(got, []string{doctor.VirtualizationEntitlement}) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestDebianPackage builds the package twice, installs it beneath a root of its
// own, runs what is in it, and removes it.
func TestDebianPackage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the programs anew: make test runs it")
	}
	if runtime.GOOS != "linux" {
		t.Skip("Debian's packages are made on Linux")
	}
	made := t.TempDir()
	deb := filepath.Join(made, "carrel_0.0.1_"+runtime.GOARCH+".deb")
	must(t, "scripts/deb", "0.0.1", made)
	first, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	must(t, "scripts/deb", "0.0.1", made)
	if second, _ := os.ReadFile(deb); sha256.Sum256(first) != sha256.Sum256(second) {
		t.Error("two builds of the same sources differ")
	}
	if out, err := exec.Command("scripts/deb", "0.0.1", made, "riscv64").CombinedOutput(); err == nil {
		t.Errorf("a package for an architecture without guests: %s", out)
	}

	root := t.TempDir()
	for _, dir := range []string{"info", "updates", "triggers"} {
		if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"status", "available"} {
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dpkg := func(args ...string) string {
		t.Helper()
		// What it depends on is of the machine, and not beneath this root.
		return must(t, "dpkg", append([]string{"--root=" + root, "--force-not-root", "--force-depends", "--force-script-chrootless", "--log=/dev/null"}, args...)...)
	}
	dpkg("--install", deb)
	if out := must(t, "dpkg-query", "--admindir="+root+"/var/lib/dpkg", "-W", "-f", "${Status} ${Version} ${Architecture} ${Depends}", "carrel"); !strings.HasPrefix(out, "install ok installed 0.0.1 "+runtime.GOARCH+" qemu-system-") {
		t.Errorf("dpkg knows %s", out)
	}
	dpkg("--verify", "carrel")
	carrel := filepath.Join(root, "usr/bin/carrel")
	if out := must(t, carrel, "version"); !strings.Contains(out, "0.0.1") {
		t.Errorf("carrel version: %s", out)
	}
	daemon := exec.Command(filepath.Join(root, "usr/lib/carrel/carreld"), "version")
	if out, err := daemon.CombinedOutput(); err != nil || !strings.Contains(string(out), "0.0.1") {
		t.Errorf("carreld version: %s, %v", out, err)
	}
	unit, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/user/carrel.service"))
	if err != nil || !strings.Contains(string(unit), "KillMode=process") {
		t.Errorf("the unit: %s, %v", unit, err)
	}
	for _, name := range []string{"usr/lib/carrel/carrel-agent", "usr/share/doc/carrel/install.md", "usr/share/doc/carrel/doctor.md", "usr/share/doc/carrel/copyright", "usr/share/bash-completion/completions/carrel"} {
		if fi, err := os.Stat(filepath.Join(root, name)); err != nil || fi.Size() == 0 || fi.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	dpkg("--purge", "carrel")
	if left, _ := filepath.Glob(filepath.Join(root, "usr/*/carrel*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
	if _, err := os.Lstat(filepath.Join(root, "usr/lib/carrel")); !os.IsNotExist(err) {
		t.Errorf("usr/lib/carrel is left: %v", err)
	}
}

// rendered are the formula and the manifests as a release would have them.
func rendered(t *testing.T) (dir string, digests map[string]string) {
	t.Helper()
	dir, digests = t.TempDir(), map[string]string{}
	var files []string
	for _, name := range []string{"source", "amd64", "arm64"} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		files, digests[name] = append(files, file), fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
	}
	must(t, "scripts/package/render", append([]string{"1.2.3", dir}, files...)...)
	return dir, digests
}

func TestFormula(t *testing.T) {
	if testing.Short() {
		t.Skip("needs ruby, which scripts/setup installs: make test runs it")
	}
	dir, digests := rendered(t)
	file := filepath.Join(dir, "carrel.rb")
	must(t, "ruby", "-wc", file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"class Carrel < Formula\n", "/v1.2.3/carrel-1.2.3.tar.gz\"", `sha256 "` + digests["source"] + `"`, `license "Apache-2.0"`, "scripts/sign"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the formula has no %q", want)
		}
	}
	// What the formula names is in the tree.
	for _, m := range regexp.MustCompile(`"(\./cmd/[a-z-]+|scripts/[a-z]+)"`).FindAllStringSubmatch(string(b), -1) {
		if _, err := os.Stat(m[1]); err != nil {
			t.Errorf("the formula names %s: %v", m[1], err)
		}
	}
	bad := filepath.Join(dir, "bad.rb")
	os.WriteFile(bad, append(b, "end\n"...), 0o600)
	if exec.Command("ruby", "-wc", bad).Run() == nil {
		t.Error("control: ruby takes anything")
	}
}

// TestWinget holds the manifests to the fields of winget's schemas, version 1.9.0
// (https://github.com/microsoft/winget-cli/tree/master/schemas/JSON/manifests/v1.9.0),
// of which these are the ones that we use.
func TestWinget(t *testing.T) {
	dir, digests := rendered(t)
	id, semver := regexp.MustCompile(`^[^\s\\/:*?"<>|.]{1,32}(\.[^\s\\/:*?"<>|.]{1,32}){1,7}$`), regexp.MustCompile(`^1\.9\.0$`)
	// field: pattern; what is not here is in no schema of ours.
	text := regexp.MustCompile(`(?s)^.{2,256}$`)
	url := regexp.MustCompile(`^https://github\.com/carrel-vm(/\S*)?$`)
	head := map[string]*regexp.Regexp{"PackageIdentifier": id, "PackageVersion": regexp.MustCompile(`^1\.2\.3$`), "ManifestVersion": semver}
	for name, c := range map[string]struct {
		kind     string
		fields   map[string]*regexp.Regexp
		required []string
	}{
		"CarrelVM.Carrel.yaml": {"version", map[string]*regexp.Regexp{"DefaultLocale": regexp.MustCompile(`^en-US$`)}, []string{"DefaultLocale"}},
		"CarrelVM.Carrel.locale.en-US.yaml": {"defaultLocale", map[string]*regexp.Regexp{
			"PackageLocale": regexp.MustCompile(`^en-US$`), "Publisher": text, "PublisherUrl": url, "PublisherSupportUrl": url, "PackageName": text, "PackageUrl": url,
			"License": text, "LicenseUrl": url, "ShortDescription": text, "Description": regexp.MustCompile(`(?s)^.{3,1000}$`), "Moniker": regexp.MustCompile(`^.{1,40}$`), "Tags": nil, "ReleaseNotesUrl": url,
		}, []string{"PackageLocale", "Publisher", "PackageName", "License", "ShortDescription"}},
		"CarrelVM.Carrel.installer.yaml": {"installer", map[string]*regexp.Regexp{
			"Platform": nil, "MinimumOSVersion": regexp.MustCompile(`^10\.0\.19041\.0$`), "InstallerType": regexp.MustCompile(`^zip$`), "NestedInstallerType": regexp.MustCompile(`^portable$`),
			"NestedInstallerFiles": nil, "ArchiveBinariesDependOnPath": regexp.MustCompile(`^true$`), "Installers": nil,
		}, []string{"Installers"}},
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]yaml.Node
		if err := yaml.Unmarshal(b, &doc); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if kind := doc["ManifestType"]; kind.Value != c.kind {
			t.Errorf("%s is of type %q", name, kind.Value)
		}
		delete(doc, "ManifestType")
		for _, field := range append(slices.Collect(maps.Keys(head)), c.required...) {
			if _, ok := doc[field]; !ok {
				t.Errorf("%s has no %s", name, field)
			}
		}
		for field, v := range doc {
			pattern, ok := head[field]
			if !ok {
				pattern, ok = c.fields[field]
			}
			switch {
			case !ok:
				t.Errorf("%s: %s is in no schema", name, field)
			case pattern != nil && (v.Kind != yaml.ScalarNode || !pattern.MatchString(v.Value)):
				t.Errorf("%s: %s is %q", name, field, v.Value)
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "CarrelVM.Carrel.installer.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		NestedInstallerFiles []struct {
			RelativeFilePath     string `yaml:"RelativeFilePath"`
			PortableCommandAlias string `yaml:"PortableCommandAlias"`
		} `yaml:"NestedInstallerFiles"`
		Installers []struct {
			Architecture    string `yaml:"Architecture"`
			InstallerURL    string `yaml:"InstallerUrl"`
			InstallerSha256 string `yaml:"InstallerSha256"`
		} `yaml:"Installers"`
	}
	if err := yaml.Unmarshal(b, &in); err != nil {
		t.Fatal(err)
	}
	if len(in.NestedInstallerFiles) != 1 || in.NestedInstallerFiles[0].PortableCommandAlias != "carrel" || in.NestedInstallerFiles[0].RelativeFilePath != `carrel\carrel.exe` {
		t.Errorf("%+v", in.NestedInstallerFiles)
	}
	if len(in.Installers) != 2 {
		t.Fatalf("%+v", in.Installers)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		if got := in.Installers[i]; got.InstallerSha256 != strings.ToUpper(digests[arch]) || !strings.HasSuffix(got.InstallerURL, "/v1.2.3/carrel-1.2.3-windows-"+arch+".zip") || got.Architecture != []string{"x64", "arm64"}[i] {
			t.Errorf("%+v", got)
		}
	}
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
