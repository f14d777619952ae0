package carrel_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// bom is what the test looks at of CycloneDX 1.6.
type bom struct {
	BomFormat   string `json:"bomFormat"`
	SpecVersion string `json:"specVersion"`
	Components  []struct{ Type, Name, Version, Purl string }
}

// TestSBOM: what scripts/sbom says of a program are the modules that go.mod has, and of an image its packages.
func TestSBOM(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "carrel-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "./cmd/carrel-agent") // as make build does
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sbom := func(args ...string) (out bom, names map[string]string, err error) {
		b, err := exec.Command("scripts/sbom", append([]string{"0.1.0"}, args...)...).Output()
		if err != nil {
			return out, nil, err
		}
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		names = map[string]string{}
		for _, c := range out.Components {
			names[c.Name] = c.Version
			if c.Type == "library" && !strings.HasPrefix(c.Purl, "pkg:") {
				t.Errorf("%s has the purl %q", c.Name, c.Purl)
			}
		}
		return out, names, nil
	}
	if _, err := exec.LookPath("jq"); err != nil {
		t.Fatalf("%v (scripts/setup installs it: jq)", err)
	}
	out, names, err := sbom(agent)
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	const vsock = "github.com/mdlayher/vsock"
	if v := names[vsock]; out.BomFormat != "CycloneDX" || out.SpecVersion != "1.6" || !strings.Contains(string(mod), vsock+" "+v+"\n") || names["go"] == "" {
		t.Errorf("%+v", out)
	}
	if _, _, err := sbom("/bin/sh"); err == nil {
		t.Error("a program that says nothing of itself has a list")
	}
	manifest := filepath.Join(t.TempDir(), "manifest.json")
	if err := os.WriteFile(manifest, []byte(`{"name":"box","arch":"amd64","kernelVersion":"6.12.1","parts":[],"packages":[{"name":"libc6:amd64","version":"1:2.36-9+deb12u14"},{"name":"adduser","version":"3.134"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, names, err = sbom("--image", manifest)
	if err != nil || names["linux"] != "6.12.1" || names["libc6"] != "1:2.36-9+deb12u14" || len(out.Components) != 3 || out.Components[2].Purl != "pkg:deb/debian/libc6@1%3A2.36-9%2Bdeb12u14?arch=amd64&distro=bookworm" {
		t.Errorf("%v: %+v", err, out)
	}
}
