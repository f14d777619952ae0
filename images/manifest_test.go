package images

import (
	"encoding/json"
	"strings"
	"testing"
)

const hash0 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const goodManifest = `{"version":1,"name":"default","created":"2026-01-02T03:04:05Z","arch":"amd64","kernelVersion":"6.12.1-carrel",
"parts":[{"name":"vmlinuz","sha256":"` + hash0 + `","size":1,"compressed":true},
{"name":"initrd","sha256":"` + hash0 + `","size":1,"compressed":false},
{"name":"root.erofs","sha256":"` + hash0 + `","size":1,"compressed":true}],
"rootUncompressed":5,"tools":[{"name":"git","version":"1:2.39"}],"packages":[{"name":"libc6:amd64","version":"2.36-9+deb12u14"}],
"inputs":{"kernel":"` + hash0 + `","root":"` + hash0 + `","agent":"` + hash0 + `","initrd":1}}`

func TestManifestIsStrict(t *testing.T) {
	m, err := parseManifest([]byte(goodManifest))
	if err != nil {
		t.Fatal(err)
	}
	if m.Part(Root).Size != 1 || m.Part("other").Size != 0 {
		t.Errorf("parts: %v", m.Parts)
	}
	for what, r := range map[string][2]string{
		"an unknown key":           {`"version":1`, `"version":1,"extra":1`},
		"an unknown key inside":    {`"size":1`, `"size":1,"path":"/etc/passwd"`},
		"another version":          {`"version":1`, `"version":2`},
		"a path for a name":        {`"name":"default"`, `"name":"../x"`},
		"a part elsewhere":         {`"name":"initrd"`, `"name":"../initrd"`},
		"a part twice":             {`"name":"initrd"`, `"name":"vmlinuz"`},
		"a negative size":          {`"size":1`, `"size":-1`},
		"a huge size":              {`"size":1`, `"size":9223372036854775807`},
		"a size past int64":        {`"size":1`, `"size":9223372036854775808`},
		"a fraction":               {`"size":1`, `"size":1.5`},
		"a short hash":             {hash0, hash0[:62]},
		"an upper-case hash":       {hash0, strings.ToUpper(hash0)},
		"escapes in a version":     {`1:2.39`, `1\u001b[2J`},
		"another arch":             {`amd64","kernelVersion`, `../amd64","kernelVersion`},
		"no time":                  {`2026-01-02T03:04:05Z`, `yesterday`},
		"two documents":            {`"initrd":1}}`, `"initrd":1}} {}`},
		"an endless version":       {`1:2.39`, strings.Repeat("9", 10000)},
		"more than four mebibytes": {`"version":1`, `"version":1` + strings.Repeat(" ", maxManifest)},
		"ten thousand packages":    {`"packages":[`, `"packages":[` + strings.Repeat(`{"name":"a","version":"1"},`, maxPackages)},
	} {
		bad := strings.Replace(goodManifest, r[0], r[1], 1)
		if bad == goodManifest {
			t.Fatalf("%s: nothing replaced", what)
		}
		if _, err := parseManifest([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", what)
		} else if strings.ContainsAny(err.Error(), "\x1b\x00") || len(err.Error()) > 500 {
			t.Errorf("%s: the error repeats what it was given: %q", what, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(goodManifest))
	f.Add([]byte(`{}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		// What is accepted survives being written, and names only our three files.
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil && len(again) <= maxManifest {
			t.Fatalf("accepted, written and refused: %v\n%s", err, again)
		}
		if CheckName(m.Name) != nil || len(m.Parts) != 3 || m.Part(Kernel).Size <= 0 || m.Part(Initrd).Size <= 0 || m.Part(Root).Size <= 0 {
			t.Fatalf("accepted: %+v", m)
		}
	})
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"  CC  a.o\r":             "CC  a.o",
		"a\x1b[31mb\x07\tc":       "a[31mb c",
		"é\u202eevil\u009b":       "éevil",
		"\xff\xfe":                "",
		strings.Repeat("é", 1000): strings.Repeat("é", 150),
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, expected %q", in, got, want)
		}
	}
}
