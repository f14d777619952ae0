package images

import (
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	d := "sha256:" + hash0
	for in, want := range map[string]string{
		"python":                              "docker.io/library/python:latest",
		"python:3.13":                         "docker.io/library/python:3.13",
		"docker.io/python:3.13":               "docker.io/library/python:3.13",
		"index.docker.io/library/python:3.13": "docker.io/library/python:3.13",
		"owner/name":                          "docker.io/owner/name:latest",
		"ghcr.io/owner/name:tag":              "ghcr.io/owner/name:tag",
		"127.0.0.1:5000/a/b:c":                "127.0.0.1:5000/a/b:c",
		"python@" + d:                         "docker.io/library/python@" + d,
		"python:3.13@" + d:                    "docker.io/library/python:3.13@" + d,
		"localhost/imported/box":              "localhost/imported/box:latest",
	} {
		r, err := ParseReference(in)
		if err != nil || r.String() != want {
			t.Errorf("%q: %q, %v, expected %q", in, r, err, want)
			continue
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%q read again: %q, %v", r, again, err)
		}
	}
	for _, bad := range []string{
		"", "a b", "../x:y", "/etc/passwd", "-x:y", "A/b:c", "a:b:c", "a@sha256:0", "a@sha512:" + hash0, "a@" + d + "@" + d,
		"a\x00b:c", "a\n:c", "https://ghcr.io/a", "a:" + strings.Repeat("b", 129), strings.Repeat("a/", 300) + "b:c",
	} {
		if r, err := ParseReference(bad); err == nil {
			t.Errorf("%.60q was taken for %q", bad, r)
		} else if strings.ContainsAny(err.Error(), "\x00\n") {
			t.Errorf("the error repeats what it was given: %q", err)
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"python:3.13", "ghcr.io/a/b@sha256:" + hash0, "localhost:5000/x", "a@b", ":/@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%q is %q, and read again %q, %v", s, r, again, err)
		}
		if _, err := ParseReference(r.key()); err != nil {
			t.Errorf("%q is asked for as %q: %v", s, r.key(), err)
		}
	})
}

const pulledManifest = `{"version":2,"name":"sha256-` + hash0 + `","created":"2026-01-02T03:04:05Z","arch":"amd64","kernelVersion":"",
"parts":[{"name":"root.erofs","sha256":"` + hash0 + `","size":1,"compressed":false}],"rootUncompressed":5,"tools":[],"packages":[],
"inputs":{"kernel":"","root":"","agent":"","initrd":0},
"origin":{"digest":"sha256:` + hash0 + `","platform":"linux/amd64","config":{"Entrypoint":["/e"],"Cmd":null,"Env":["A=b"],"User":"u","WorkingDir":"/w","StopSignal":"","Labels":null},
"layers":[{"digest":"sha256:` + hash0 + `","size":7}]}}`

func TestPulledManifest(t *testing.T) {
	m, err := parseManifest([]byte(pulledManifest))
	if err != nil {
		t.Fatal(err)
	}
	if m.Origin.Config.User != "u" || m.Origin.Layers[0].Size != 7 {
		t.Errorf("origin: %+v", m.Origin)
	}
	for what, r := range map[string][2]string{
		"a version for built ones": {`"version":2`, `"version":1`},
		"another image's name":     {`"name":"sha256-e3`, `"name":"sha256-f3`},
		"a name like a built one":  {`"name":"sha256-` + hash0, `"name":"default`},
		"a kernel of its own":      {`"parts":[`, `"parts":[{"name":"vmlinuz","sha256":"` + hash0 + `","size":1,"compressed":true},`},
		"another platform":         {`linux/amd64`, `linux/arm64`},
		"an unknown key":           {`"User":"u"`, `"User":"u","Host":"x"`},
		"a NUL in the config":      {`A=b`, `A=\u0000`},
		"a negative layer":         {`"size":7`, `"size":-7`},
		"a layer that is a path":   {`"layers":[{"digest":"sha256:`, `"layers":[{"digest":"../../:`},
	} {
		bad := strings.Replace(pulledManifest, r[0], r[1], 1)
		if bad == pulledManifest {
			t.Fatalf("%s: nothing replaced", what)
		}
		if _, err := parseManifest([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}
